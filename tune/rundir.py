"""The directory of a search: where everything lies, how it is written so that a kill leaves no half file."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from ofmu.config_io import apply_overrides, read_mapping, validate
from ofmu.environment import environment
from ofmu.errors import ConfigError, RunError, StorageError
from ofmu.files import write_json, write_text
from tune.config import SearchConfig

_RESUMABLE = (
    "search.num_trials",
    "search.max_gradient_evaluations",
    "search.max_concurrent",
    "search.keep_models",
    "cluster.",
)


@dataclass(frozen=True)
class RunDirectory:
    """Paths in the directory of one search."""

    path: Path

    @classmethod
    def fresh(cls, path: str | Path | None) -> RunDirectory:
        """Return a directory, not yet made, for a new search; None names one under ``runs/`` by the time of day.

        Raises:
            RunError: a search already lies there.
        """
        if path is None:
            stem = Path("runs") / f"search-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
            path, again = stem, 1
            while Path(path).exists():
                again += 1
                path = stem.with_name(f"{stem.name}-{again}")
        run = cls(Path(path).absolute())
        if run.config_file.exists() or run.study_file.exists():
            raise RunError(f"{path} already holds a run: continue it with --resume {path}, or name another directory")
        return run

    @classmethod
    def existing(cls, path: str | Path) -> RunDirectory:
        """Return the directory of a search that was started before.

        Raises:
            RunError: it holds none.
        """
        run = cls(Path(path).absolute())
        if not run.path.is_dir():
            raise RunError(f"There is no run directory {path}: check the path")
        if not run.config_file.is_file() or not run.trials.is_dir():
            raise RunError(f"{path} is not the directory of a search: it has no config.yaml with a trials folder")
        return run

    @property
    def config_file(self) -> Path:
        """The search's whole config."""
        return self.path / "config.yaml"

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
        return self.path / "trials"

    def trial(self, number: int) -> Path:
        """Return the directory of one trial."""
        return self.trials / f"{number:05d}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for one search at a time.

        Raises:
            RunError: another search is at work in it.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"Another search is running in {self.path}: wait for it, or stop it first") from None
        try:
            yield
        finally:
            lock.release()

    def read_config(self, overrides: Sequence[str] = ()) -> SearchConfig:
        """Return the stored config, with overrides of what may change when a search is continued.

        Raises:
            ConfigError: an override would make the finished trials incomparable with the coming ones.
        """
        for entry in overrides:
            if not entry.startswith(_RESUMABLE):
                raise ConfigError(
                    f"A resumed search cannot change '{entry.partition('=')[0]}': only search.num_trials, "
                    "max_gradient_evaluations, max_concurrent, keep_models and the cluster section may differ"
                )
        return validate(SearchConfig, apply_overrides(read_mapping(self.config_file), overrides))

    def create(self) -> None:
        """Make the directory.

        Raises:
            StorageError: it cannot be made.
        """
        try:
            self.trials.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"Cannot make the run directory {self.path}: {error.strerror}") from error

    def write_config(self, config: SearchConfig) -> None:
        """Store the config and a description of this machine."""
        mapping = config.model_dump(mode="json")
        write_text(self.config_file, yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True))
        started = {"time": datetime.now().astimezone().isoformat(timespec="seconds"), "command": sys.argv}
        write_json(self.path / "environment.json", environment() | started)

    def delete_model(self, number: int) -> None:
        """Remove a finished trial's model; its metrics and config stay."""
        shutil.rmtree(self.trial(number) / "model", ignore_errors=True)

    def delete_checkpoints(self, number: int) -> None:
        """Remove what only an unfinished trial needs; a failed one would keep it otherwise."""
        for name in ("checkpoints", "ray_train"):
            shutil.rmtree(self.trial(number) / name, ignore_errors=True)
