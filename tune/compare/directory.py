"""The directory of a comparison: where its searches, runs and reports lie."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ofmu.config_io import apply_overrides, read_mapping
from ofmu.environment import environment
from ofmu.errors import ConfigError, RunError, StorageError
from ofmu.files import write_json, write_text

_RESUMABLE = ("compare.seeds", "search.max_concurrent", "search.keep_models", "cluster.")


@dataclass(frozen=True)
class CompareDirectory:
    """Paths in the directory of one comparison."""

    path: Path

    @classmethod
    def fresh(cls, path: str | Path | None) -> CompareDirectory:
        """Return a directory, not yet made, for a new comparison; None names one under ``runs/`` by the time of day.

        Raises:
            RunError: a run already lies there.
        """
        if path is None:
            stem = Path("runs") / f"compare-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
            path, again = stem, 1
            while Path(path).exists():
                again += 1
                path = stem.with_name(f"{stem.name}-{again}")
        made = cls(Path(path).absolute())
        if made.config_file.exists():
            raise RunError(f"{path} already holds a run: continue it with --resume {path}, or name another directory")
        return made

    @classmethod
    def existing(cls, path: str | Path) -> CompareDirectory:
        """Return the directory of a comparison that was started before.

        Raises:
            RunError: it holds none.
        """
        found = cls(Path(path).absolute())
        if not found.path.is_dir():
            raise RunError(f"There is no run directory {path}: check the path")
        if not found.config_file.is_file() or not found.searches.is_dir():
            raise RunError(f"{path} is not the directory of a comparison: it has no config.yaml with a searches folder")
        return found

    @property
    def config_file(self) -> Path:
        """The config that all methods' searches were made from, with the ``compare`` section."""
        return self.path / "config.yaml"

    @property
    def searches(self) -> Path:
        """The folder of the methods' searches."""
        return self.path / "searches"

    def search(self, method: str) -> Path:
        """Return the directory of one method's search."""
        return self.searches / method

    def run(self, method: str, trial: int, seed: int) -> Path:
        """Return the directory of one point's run on one seed."""
        return self.path / "runs" / method / f"{trial:05d}-seed{seed}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for one process at a time.

        Raises:
            RunError: another comparison is at work in it.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"Another comparison is running in {self.path}: wait for it, or stop it first") from None
        try:
            yield
        finally:
            lock.release()

    def read_mapping(self, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Return the stored mapping, with overrides of what may change when a comparison is continued.

        Raises:
            ConfigError: an override would make what is done incomparable with what is to come.
        """
        for entry in overrides:
            if not entry.startswith(_RESUMABLE):
                raise ConfigError(
                    f"A resumed comparison cannot change '{entry.partition('=')[0]}': only compare.seeds, "
                    "search.max_concurrent, search.keep_models and the cluster section may differ"
                )
        return apply_overrides(read_mapping(self.config_file), overrides)

    def create(self) -> None:
        """Make the directory.

        Raises:
            StorageError: it cannot be made.
        """
        try:
            self.searches.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"Cannot make the run directory {self.path}: {error.strerror}") from error

    def write_mapping(self, mapping: Mapping[str, Any]) -> None:
        """Store what the comparison was asked to do and, the first time, how it was called and on what machine."""
        write_text(self.config_file, yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True))
        if not self._environment_file.is_file():
            started = {"time": datetime.now().astimezone().isoformat(timespec="seconds"), "command": sys.argv}
            write_json(self._environment_file, environment() | started)

    def command(self) -> list[str]:
        """Return the command line that started the comparison."""
        return list(json.loads(self._environment_file.read_text(encoding="utf-8"))["command"])

    @property
    def _environment_file(self) -> Path:
        return self.path / "environment.json"
