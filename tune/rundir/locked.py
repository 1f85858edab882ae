"""What the directories of searches and of comparisons share: name, lock, and the files that are written first."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml

from cluster.storage.uri import is_uri, redacted, without_credentials
from ofmu.config.files import read_mapping
from ofmu.config.renamed import RENAMED_KEYS, renamed_keys_in
from ofmu.errors import ConfigError, RunError, StorageError
from ofmu.io.environment import environment
from ofmu.io.files import looked_for, write_json, write_text
from ofmu.io.lock import LOCK, locked
from ofmu.io.text import shell_word
from ofmu.run_config import UnlearnConfig, override
from ofmu.run_files import (
    CONFIG,
    CONTENT,
    ENVIRONMENT,
    MODEL,
    REPORT,
    check_is_no_link,
    check_no_links,
    check_output,
    made_by_ofmu,
)
from tune.rundir.kind import SEARCHES, Kind, find_kind
from tune.rundir.search_files import TUNE_STORAGE


@dataclass(frozen=True)
class LockedDirectory:
    """A run directory that one process at a time writes, and that a later process can resume."""

    path: Path

    kind: ClassVar[str]
    """The noun that errors use for the run: ``search`` or ``comparison``."""
    command_name: ClassVar[str]
    """The command that makes the directory; the first part of a default name."""
    folder_name: ClassVar[str]
    """The folder inside by which a directory of this kind is recognised."""
    resumable: ClassVar[tuple[str, ...]]
    """Config keys, or prefixes of keys, that a resume may override."""
    levels: ClassVar[int]
    """How many levels of names the directory has above the directories of single runs."""
    written: ClassVar[tuple[str, ...]]
    """What a run of this kind writes into its directory, besides what all kinds write."""

    @classmethod
    def create_new(cls, path: str | Path | None) -> Self:
        """Return the directory of a new run. Nothing is written; :meth:`mkdir` makes the directory.

        Args:
            path: None names a directory under ``runs/`` by the time of day.

        Raises:
            RunError: the path is a URI, a run is already there, or files are there that a run would replace.
        """
        _check_is_path(cls.kind, path)
        if path is None:
            stem = Path("runs") / f"{cls.command_name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
            path, attempt = stem, 1
            while Path(path).exists():
                attempt += 1
                path = stem.with_name(f"{stem.name}-{attempt}")
        new = cls(Path(path).absolute())
        if made_by_ofmu(new.path) and new.config_file.exists():
            raise RunError(
                f"{path} already holds a run: continue it with --resume {shell_word(path)}, or name another directory"
            )
        check_is_no_link(new.path / LOCK)
        check_output(new.path, (CONFIG, CONTENT, ENVIRONMENT, REPORT, TUNE_STORAGE, cls.folder_name, *cls.written))
        return new

    @classmethod
    def open_existing(cls, path: str | Path) -> Self:
        """Return the directory of a run that was started before.

        Raises:
            RunError: there is no such directory, it belongs to no run of this kind, or it holds a link.
        """
        _check_is_path(cls.kind, path)
        found = cls(Path(path).absolute())
        if not found.path.is_dir():
            raise RunError(f"There is no run directory {looked_for(path)}: check the path")
        check_no_links(found.path, cls.levels)
        missing = f"it has no {CONFIG} with a {cls.folder_name} folder"
        if not found.config_file.is_file() or not found.folder.is_dir():
            kind = find_kind(found.path)
            what = missing if kind in (None, cls.kind) else _what_else(path, kind)
            raise RunError(f"{path} is not the directory of a {cls.kind}: {what}")
        if not made_by_ofmu(found.path):
            raise RunError(
                f"{path} is not the directory of a {cls.kind}: it has no {ENVIRONMENT} of ofmu, so a {cls.kind} there "
                "could replace other files"
            )
        return found

    @property
    def display_path(self) -> str:
        """The name that users type for the directory."""
        return str(self.path)

    @property
    def config_file(self) -> Path:
        """The whole config, as YAML."""
        return self.path / CONFIG

    @property
    def environment_file(self) -> Path:
        """Versions of packages, the machine, the time and the command line of the start."""
        return self.path / ENVIRONMENT

    @property
    def folder(self) -> Path:
        """The folder by which the directory is recognised."""
        return self.path / self.folder_name

    @property
    def tune_storage(self) -> Path:
        """The folder of Ray Tune's own files. It is deleted at the end of the run."""
        return self.path / TUNE_STORAGE

    def check_content(self, config: UnlearnConfig) -> dict[str, str] | None:
        """Check that rows, models, reference and the user's modules are those of the start. A new run passes.

        Return the hashes, for :meth:`write_content`, since files of models take long to read; None for a new run,
        whose files are not read.

        Raises:
            RunError: something has changed. Finished and new trials could then not be compared.
            OfmuError: something cannot be read.
        """
        # This import loads torch, which takes seconds.
        from ofmu.content import check_content, content_of, read_content

        earlier = read_content(self.path)
        if not earlier:
            return None
        content = content_of(config)
        check_content(Path(self.display_path), earlier, content, self.kind)
        return content

    def write_content(self, config: UnlearnConfig, content: Mapping[str, str] | None = None) -> None:
        """Store hashes of the content that the run starts from. What is stored already stays.

        Args:
            config: the run.
            content: the hashes, if they are known. None: the files are read.

        Raises:
            StorageError: the file cannot be written.
        """
        # This import loads torch, which takes seconds.
        from ofmu.content import content_of, read_content, write_content

        write_content(self.path, dict(content_of(config) if content is None else content) | read_content(self.path))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the directory against other processes.

        Raises:
            RunError: another process holds the lock.
            StorageError: the directory cannot be written.
        """
        busy = f"Another {self.kind} is running in {self.display_path}: wait for it, or stop it first"
        with locked(self.path, busy):
            yield

    def mkdir(self) -> None:
        """Make the directory and its folder.

        Raises:
            StorageError: the directory cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"Cannot make the run directory {self.path}: {error.strerror}") from error

    def read_mapping(self, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Return the stored config as a mapping, with the overrides of a resume.

        Raises:
            ConfigError: an override changes a key that a resume may not change. Finished and new trials could then
                not be compared.
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
                f"{self.display_path} was written by ofmu 0.1, whose config key '{key}' is called "
                f"'{RENAMED_KEYS[key]}' since ofmu 0.2.0: start a new {self.kind}, or continue this one with ofmu 0.1"
            )
        return override(stored, overrides, users_own=False)

    def write_mapping(self, mapping: Mapping[str, Any], *, replace_environment: bool) -> None:
        """Store the config, the environment and the command line.

        Args:
            mapping: the config.
            replace_environment: whether to write ``environment.json`` although there is one.
        """
        if replace_environment or not self.environment_file.is_file():
            started = {
                "time": datetime.now().astimezone().isoformat(timespec="seconds"),
                "command": [without_credentials(word) for word in sys.argv],
            }
            # The environment shows that the directory is ours, so an interruption must not leave a config without it.
            write_json(self.environment_file, environment() | started)
        write_text(self.config_file, yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True))


def _what_else(path: str | Path, kind: Kind) -> str:
    """Return what a directory holds in place of what was wanted, and what shows or continues it."""
    word = shell_word(path)
    return {
        "run": f"it holds a single run, whose model is {Path(path) / MODEL}; ofmu report {word} shows the run",
        "evaluation": f"it holds an evaluation of one model; ofmu report {word} shows it",
        "comparison": f"it holds a comparison, whose searches are in {Path(path) / SEARCHES}",
        "search": f"it holds a search; ofmu search --resume {word} continues it",
    }[kind]


def _check_is_path(kind: str, path: str | Path | None) -> None:
    if path is not None and is_uri(path):
        raise RunError(
            f"The directory of a {kind} cannot be at {redacted(str(path))}: name a path that every node sees"
        )
