"""The directory of a search: where everything lies, how it is written so that a kill leaves no half file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
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

    def delete_checkpoints(self, number: int) -> None:
        """Remove what only an unfinished trial needs; a failed one would keep it otherwise."""
        for name in ("checkpoints", "ray_train"):
            shutil.rmtree(self.trial(number) / name, ignore_errors=True)
