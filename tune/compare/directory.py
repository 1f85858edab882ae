"""The directory of a comparison: its searches, runs and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofmu.config.files import validate
from ofmu.errors import ConfigError
from ofmu.io.plugins import results_only
from ofmu.run_files import read_stored, stored_values
from tune.compare.config import CompareConfig, CompareOptions
from tune.rundir.kind import SEARCHES
from tune.rundir.locked import LockedDirectory

SUMMARY = "compare.json"
"""Written last: its presence says that the comparison is finished."""
TABLE = "compare.csv"
TEXT = "compare.md"
PLOT = "compare.png"
RUNS = "runs"


@dataclass(frozen=True)
class CompareDirectory(LockedDirectory):
    """Paths in the directory of one comparison. The searches of all methods are made from its config."""

    kind = "comparison"
    command_name = "compare"
    folder_name = SEARCHES
    levels = 3
    resumable = (
        "compare.seeds",
        "compare.retain_draws",
        "compare.methods",
        "compare.spaces.",
        "search.max_concurrent_trials",
        "search.keep_models",
        "cluster.",
    )
    written = (SUMMARY, TABLE, TEXT, PLOT, RUNS)

    @property
    def summary_file(self) -> Path:
        """The summary of a finished comparison, as JSON."""
        return self.path / SUMMARY

    @property
    def searches(self) -> Path:
        """The folder of the methods' searches."""
        return self.folder

    def search(self, method: str) -> Path:
        """Return the directory of one method's search."""
        return self.searches / method

    def run(self, method: str, trial: int, seed: int) -> Path:
        """Return the directory of one point's run on one seed."""
        return self.path / RUNS / method / f"{trial:05d}-seed{seed}"

    def retain_run(self, method: str, trial: int, draw: int) -> Path:
        """Return the directory of one point's run on one draw of the retain rows."""
        return self.path / RUNS / method / f"{trial:05d}-retain{draw}"

    def read_mapping(self, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Return the stored config with the overrides of a resume, which may add methods and those methods' spaces.

        Raises:
            ConfigError: an override removes a method, or changes the space of a method whose search has begun.
        """
        before, after = super().read_mapping(), super().read_mapping(overrides)
        for name in sorted(set(_methods(before)) - set(_methods(after))):
            raise ConfigError(
                f"A resumed comparison cannot leave out the method '{name}': compare.methods may only add to "
                f"{','.join(_methods(before))}"
            )
        spaces = [dict((mapping.get("compare") or {}).get("spaces") or {}) for mapping in (before, after)]
        for name in sorted({*spaces[0], *spaces[1]}):
            if spaces[0].get(name) != spaces[1].get(name) and self.search(name).exists():
                raise ConfigError(
                    f"A resumed comparison cannot change what the method '{name}' searches, as its search has begun: "
                    f"leave compare.spaces.{name} out, or start a new comparison"
                )
        return after

    def resume_words(self, mapping: Mapping[str, Any]) -> list[str]:
        """Return the words of the command that continues the comparison. No module that its config names is imported.

        Args:
            mapping: the comparison's config.
        """
        with results_only(str(self.config_file)):
            code = ["--allow-code"] if validate(CompareConfig, mapping).plugins else []
        return ["ofmu", "compare", "--resume", str(self.path), *code]

    def command(self) -> list[str]:
        """Return the command line that started the comparison."""
        with stored_values(self.environment_file):
            return [str(word) for word in (read_stored(self.environment_file) or {})["command"]]


def _methods(mapping: Mapping[str, Any]) -> tuple[str, ...]:
    return validate(CompareOptions, mapping.get("compare") or {}).methods
