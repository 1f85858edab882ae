"""The directory of a search: where everything lies, how it is written so that a kill leaves no half file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ofmu.config_io import validate
from tune.config import SearchConfig
from tune.directory import OwnedDirectory


@dataclass(frozen=True)
class RunDirectory(OwnedDirectory):
    """Paths in the directory of one search."""

    kind = "search"
    command_name = "search"
    folder_name = "trials"
    resumable = (
        "search.num_trials",
        "search.max_gradient_evaluations",
        "search.max_concurrent",
        "search.keep_models",
        "cluster.",
    )

    @property
    def study_file(self) -> Path:
        """The Optuna study, an SQLite file."""
        return self.path / "study.db"

    @property
    def rungs_file(self) -> Path:
        """What trials reported on their way, for early stopping: JSON lines."""
        return self.path / "rungs.jsonl"

    @property
    def warm_start_file(self) -> Path:
        """What earlier searches gave to this one; see :mod:`tune.warmstart`."""
        return self.path / "warm_start.json"

    @property
    def trials(self) -> Path:
        """The folder of the trials' directories."""
        return self.folder

    def trial(self, number: int) -> Path:
        """Return the directory of one trial."""
        return self.trials / f"{number:05d}"

    def read_config(self, overrides: Sequence[str] = ()) -> SearchConfig:
        """Return the stored config, with overrides of what may change when a search is continued.

        Raises:
            ConfigError: an override would make the finished trials incomparable with the coming ones.
        """
        return validate(SearchConfig, self.read_mapping(overrides))

    def write_config(self, config: SearchConfig) -> None:
        """Store the config and a description of this machine."""
        self.write_mapping(config.model_dump(mode="json"), again=True)

    def delete_model(self, number: int) -> None:
        """Remove a finished trial's model; its metrics and config stay."""
        shutil.rmtree(self.trial(number) / "model", ignore_errors=True)

    def delete_models(self, ended: Iterable[int], front: Container[int], keep: str) -> None:
        """Remove the models of some ended trials, as far as ``search.keep_models`` does not keep them."""
        if keep == "all":
            return
        for number in ended:
            if keep == "none" or number not in front:
                self.delete_model(number)

    def seconds(self) -> float:
        """Return for how long the search has been at work, as far as its reports say."""
        path = self.path / "search.json"
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else 0.0

    def delete_checkpoints(self, number: int) -> None:
        """Remove what only an unfinished trial needs; a failed one would keep it otherwise."""
        for name in ("checkpoints", "ray_train"):
            shutil.rmtree(self.trial(number) / name, ignore_errors=True)
