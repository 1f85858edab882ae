"""The directory of a comparison: where its searches, runs and reports lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tune.directory import OwnedDirectory


@dataclass(frozen=True)
class CompareDirectory(OwnedDirectory):
    """Paths in the directory of one comparison; its config is what all methods' searches were made from."""

    kind = "comparison"
    command_name = "compare"
    folder_name = "searches"
    resumable = ("compare.seeds", "search.max_concurrent", "search.keep_models", "cluster.")

    @property
    def searches(self) -> Path:
        """The folder of the methods' searches."""
        return self.folder

    def search(self, method: str) -> Path:
        """Return the directory of one method's search."""
        return self.searches / method

    def run(self, method: str, trial: int, seed: int) -> Path:
        """Return the directory of one point's run on one seed."""
        return self.path / "runs" / method / f"{trial:05d}-seed{seed}"

    def command(self) -> list[str]:
        """Return the command line that started the comparison."""
        return list(json.loads(self.environment_file.read_text(encoding="utf-8"))["command"])
