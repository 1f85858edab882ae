"""What the directories of searches and of comparisons share: naming, finding, locking, and what is stored first."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from filelock import FileLock, Timeout

from cluster.storage.mirror import is_uri, shown, without_keys
from ofmu.config.files import read_mapping
from ofmu.config.renamed import RENAMED_KEYS, renamed_keys_in
from ofmu.errors import ConfigError, RunError, StorageError
from ofmu.io.environment import environment
from ofmu.io.files import write_json, write_text
from ofmu.run_config import override


@dataclass(frozen=True)
class OwnedDirectory:
    """Paths in a directory that one process at a time works in, and that a later one can continue."""

    path: Path

    kind: ClassVar[str]
    """What it is the directory of, as errors say it."""
    command_name: ClassVar[str]
    """The command that makes it, by which it is named where the user gives no name."""
    folder_name: ClassVar[str]
    """The folder inside that marks it as one."""
    resumable: ClassVar[tuple[str, ...]]
    """Config keys, or their beginnings, that may differ when it is continued."""

    @classmethod
    def fresh(cls, path: str | Path | None) -> Self:
        """Return a directory, not yet made; None names one under ``runs/`` by the time of day.

        Raises:
            RunError: a run already lies there.
        """
        _refuse_uri(cls.kind, path)
        if path is None:
            stem = Path("runs") / f"{cls.command_name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
            path, again = stem, 1
            while Path(path).exists():
                again += 1
                path = stem.with_name(f"{stem.name}-{again}")
        made = cls(Path(path).absolute())
        if made.config_file.exists():
            raise RunError(f"{path} already holds a run: continue it with --resume {path}, or name another directory")
        return made

    @classmethod
    def existing(cls, path: str | Path) -> Self:
        """Return a directory in which work was started before.

        Raises:
            RunError: it is none.
        """
        _refuse_uri(cls.kind, path)
        found = cls(Path(path).absolute())
        if not found.path.is_dir():
            raise RunError(f"There is no run directory {path}: check the path")
        if not found.config_file.is_file() or not found.folder.is_dir():
            raise RunError(
                f"{path} is not the directory of a {cls.kind}: it has no config.yaml with a {cls.folder_name} folder"
            )
        return found

    @property
    def place(self) -> str:
        """Return how a user names the directory."""
        return str(self.path)

    @property
    def config_file(self) -> Path:
        """The whole config."""
        return self.path / "config.yaml"

    @property
    def environment_file(self) -> Path:
        """When, how and on what machine the work was started."""
        return self.path / "environment.json"

    @property
    def folder(self) -> Path:
        """The folder that marks the directory."""
        return self.path / self.folder_name

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for one process at a time.

        Raises:
            RunError: another process is at work in it.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"Another {self.kind} is running in {self.place}: wait for it, or stop it first") from None
        try:
            yield
        finally:
            lock.release()

    def create(self) -> None:
        """Make the directory.

        Raises:
            StorageError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"Cannot make the run directory {self.path}: {error.strerror}") from error

    def read_mapping(self, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Return the stored config as a mapping, with overrides of what may change when the work is continued.

        Raises:
            ConfigError: an override would make what is done incomparable with what is to come.
            RunError: an older version of ofmu wrote the directory.
        """
        for entry in overrides:
            if not entry.startswith(self.resumable):
                allowed = ", ".join(key for key in self.resumable if not key.endswith("."))
                raise ConfigError(
                    f"A resumed {self.kind} cannot change '{entry.partition('=')[0]}': only {allowed} "
                    "and the cluster section may differ"
                )
        stored = read_mapping(self.config_file)
        for key in renamed_keys_in(stored):
            raise RunError(
                f"{self.place} was written by ofmu 0.1, whose config key '{key}' is called '{RENAMED_KEYS[key]}' since "
                f"ofmu 0.2.0: start a new {self.kind}, or continue this one with ofmu 0.1"
            )
        return override(stored, overrides)

    def write_mapping(self, mapping: Mapping[str, Any], *, again: bool) -> None:
        """Store the config, and what the work was started by; ``again``: also where that is known already."""
        write_text(self.config_file, yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True))
        if again or not self.environment_file.is_file():
            started = {
                "time": datetime.now().astimezone().isoformat(timespec="seconds"),
                "command": [without_keys(word) for word in sys.argv],
            }
            write_json(self.environment_file, environment() | started)


def _refuse_uri(kind: str, path: str | Path | None) -> None:
    if path is not None and is_uri(path):
        raise RunError(f"The directory of a {kind} cannot be at {shown(str(path))}: name a path that every node sees")
