"""A cache of directories by content hash. Every returned entry is complete and verified.

An entry is built in a temporary directory beside its final path, is flushed to disk with a manifest of checksums, and
gets its final path by a rename. All this happens under a lock. A process that dies leaves only the temporary directory,
which the next builder removes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ofmu.errors import StorageError
from ofmu.io.files import FileHashes, file_hash, sync

MANIFEST = "complete.json"
"""Name of an entry's manifest, which holds the checksums of the entry's files and the cost of the entry."""
MODEL_SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".jinja"}
_PARTIAL = ".partial"
_log = logging.getLogger(__name__)

_Fill = Callable[[Path], Mapping[str, float] | None]
"""Fills a directory and returns the entry's cost; returns None if the directory must not become an entry."""


@dataclass(frozen=True)
class Entry:
    """A complete entry."""

    path: Path
    cost: Mapping[str, float]
    """What the entry cost when it was built, such as ``seconds``."""
    created: bool
    """True: this call built the entry. False: the cache had the entry."""


class Cache:
    """Entries under ``root/<kind>/<key>``. Any number of processes may share a cache.

    Args:
        root: the directory of the cache.
        hashes: hashes of files that the caller has read, which are not read again. None: none.
    """

    def __init__(self, root: Path, hashes: FileHashes | None = None) -> None:
        self.root = root
        self._hashes = hashes or FileHashes()

    def get_or_create(self, kind: str, parts: Mapping[str, Any], build: Callable[[Path], Mapping[str, float]]) -> Entry:
        """Return the entry for ``parts``. Build the entry if there is none, or if a file of the entry has changed.

        Args:
            kind: kind of the entry, such as ``models``.
            parts: everything that the content depends on, as JSON values.
            build: fills the directory of the entry and returns the cost.

        Raises:
            StorageError: the cache cannot be written, or the disk is full.
        """
        entry = self.root / kind / content_key(parts)

        def fill(directory: Path) -> Mapping[str, float]:
            cost = dict(build(directory))
            with self._storage_errors():
                write_manifest(directory, cost, parts, self._hashes)
            return cost

        cost, created = self._get(entry, fill)
        assert cost is not None
        return Entry(entry, cost, created)

    def scores_file(self, key: str) -> Path:
        """Return the path of the scores in the entry ``key``."""
        return self.root / "scores" / key / "scores.json"

    def import_entry(self, kind: str, key: str, copy: Callable[[Path], None]) -> Path | None:
        """Return the directory of an entry. Without a complete entry, import a copy of the entry from elsewhere.

        Args:
            kind: kind of the entry.
            key: key of the entry.
            copy: copies all files of the entry, with the manifest, into a directory.

        Returns:
            The directory; None if the copy has no manifest, or a file of the copy does not match the manifest.

        Raises:
            StorageError: the cache cannot be written, or the disk is full.
        """
        entry = self.root / kind / key

        def fill(directory: Path) -> Mapping[str, float] | None:
            with self._storage_errors():
                copy(directory)
            return read_manifest(directory, self._hashes)

        return None if self._get(entry, fill)[0] is None else entry

    def _get(self, entry: Path, fill: _Fill) -> tuple[Mapping[str, float] | None, bool]:
        """Return the cost of the entry, and whether ``fill`` was called. The cost is None if ``fill`` returned None."""
        cost = read_manifest(entry, self._hashes)
        if cost is not None:
            return cost, False
        lock = FileLock(entry.with_name(f".{entry.name}.lock"))
        with self._storage_errors():
            entry.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            # Another process may have built the entry while this process waited for the lock.
            cost = read_manifest(entry, self._hashes)
            return (cost, False) if cost is not None else (self._create(entry, fill), True)
        finally:
            lock.release()

    def _create(self, entry: Path, fill: _Fill) -> Mapping[str, float] | None:
        """Fill a temporary directory, and rename it to ``entry`` unless ``fill`` returns None."""
        partial = entry.with_name(f".{entry.name}{_PARTIAL}")
        with self._storage_errors():
            if entry.exists():
                _log.warning("The cache entry %s is incomplete or damaged, so it is made again", entry)
                shutil.rmtree(entry)
            # The process that left this directory is dead, since it held the lock that this process holds now.
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        try:
            cost = fill(partial)
            if cost is not None:
                with self._storage_errors():
                    partial.rename(entry)
                    sync(entry.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cost

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"The cache {self.root} cannot be written ({error.strerror or error}): free some space there, or set "
                "cache_dir to another directory"
            ) from error


def cache_root(cache_dir: str | None) -> Path:
    """Return the cache's directory: ``cache_dir``, else $OFMU_CACHE, else ``ofmu`` under the user's cache directory."""
    configured = cache_dir or os.environ.get("OFMU_CACHE")
    if configured:
        return Path(configured).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ofmu"


def work_directory(partial: Path) -> Path:
    """Return the directory for what a builder of an entry keeps for its next attempt, such as checkpoints.

    Args:
        partial: the directory that the builder fills. The next builder deletes what a dead one left there.
    """
    return partial.with_name(partial.name.removesuffix(_PARTIAL) + ".work")


def content_key(parts: Mapping[str, Any]) -> str:
    """Return the first 32 hex digits of the SHA-256 of ``parts`` as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


FileHash = Callable[[Path], str]
"""Returns the SHA-256 (hex) of a file: :func:`ofmu.io.files.file_hash`, or :class:`ofmu.io.files.FileHashes`."""


def directory_hashes(directory: Path, hash_of: FileHash = file_hash) -> dict[str, str]:
    """Return the SHA-256 (hex) of every file under ``directory`` by relative path, without the manifest."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(directory).as_posix(): hash_of(path) for path in files}


def model_hashes(directory: Path, hash_of: FileHash = file_hash) -> dict[str, str]:
    """Return the SHA-256 (hex) by name of the files of a saved model: weights, configs and tokenizer."""
    files = sorted(path for path in directory.iterdir() if path.suffix in MODEL_SUFFIXES and path.name != MANIFEST)
    return {path.name: hash_of(path) for path in files}


def write_manifest(
    directory: Path, cost: Mapping[str, float], parts: Mapping[str, Any], hash_of: FileHash = file_hash
) -> None:
    """Flush the files of a directory to disk, then write their checksums as the manifest."""
    files = directory_hashes(directory, hash_of)
    for name in files:
        sync(directory / name)
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps({"files": files, "cost": cost, "made_from": parts}, indent=1), encoding="utf-8")
    sync(manifest)
    sync(directory)


def read_manifest(directory: Path, hash_of: FileHash = file_hash) -> dict[str, float] | None:
    """Return the cost of a complete entry; None if a file is missing, is not in the manifest, or has changed."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        complete = manifest["files"] == directory_hashes(directory, hash_of)
        return dict(manifest["cost"]) if complete else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
