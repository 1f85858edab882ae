"""A cache of directories by content hash: an entry is complete and verified, or it is made again.

An entry is built in a sibling directory, flushed to the disk with a manifest of checksums, and renamed into place
under a lock, so that a killed process leaves only a sibling that the next builder removes.
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
from ofmu.io.files import file_hash, sync

MANIFEST = "complete.json"
MODEL_FILES = {".safetensors", ".json", ".txt", ".model", ".jinja"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A complete entry: its directory, what its making cost, and whether this call made it."""

    path: Path
    cost: Mapping[str, float]
    made: bool


class Cache:
    """Entries under ``root/<kind>/<key>``; any number of processes may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get_or_make(self, kind: str, parts: Mapping[str, Any], build: Callable[[Path], Mapping[str, float]]) -> Entry:
        """Return the entry for ``parts``, calling ``build(directory)`` if there is no sound one.

        ``parts`` is everything the content depends on; ``build`` fills the directory and returns its cost.

        Raises:
            StorageError: the cache cannot be written, or the disk is full.
        """
        entry = self.root / kind / content_key(parts)

        def make(directory: Path) -> Mapping[str, float]:
            cost = dict(build(directory))
            with self._writing():
                write_manifest(directory, cost, parts)
            return cost

        cost, made = self._get(entry, make)
        assert cost is not None
        return Entry(entry, cost, made)

    def scores_file(self, key: str) -> Path:
        """Return where the scores of the entry ``key`` lie."""
        return self.root / "scores" / key / "scores.json"

    def adopt(self, kind: str, key: str, fill: Callable[[Path], None]) -> Path | None:
        """Return the entry's directory, of which ``fill(directory)`` makes a copy where there is no sound one.

        None where the copy is not sound: it has no manifest, or a file that does not match it.

        Raises:
            StorageError: the cache cannot be written, or the disk is full.
        """
        entry = self.root / kind / key

        def copy(directory: Path) -> Mapping[str, float] | None:
            with self._writing():
                fill(directory)
            return read_manifest(directory)

        return None if self._get(entry, copy)[0] is None else entry

    def _get(
        self, entry: Path, make: Callable[[Path], Mapping[str, float] | None]
    ) -> tuple[Mapping[str, float] | None, bool]:
        """Return the cost of a sound entry and whether ``make`` made it just now; no cost where it made none."""
        cost = read_manifest(entry)
        if cost is not None:
            return cost, False
        lock = FileLock(entry.with_name(f".{entry.name}.lock"))
        with self._writing():
            entry.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            # Another process may have made it while this one waited.
            cost = read_manifest(entry)
            return (cost, False) if cost is not None else (self._place(entry, make), True)
        finally:
            lock.release()

    def _place(self, entry: Path, make: Callable[[Path], Mapping[str, float] | None]) -> Mapping[str, float] | None:
        """Let ``make`` fill a sibling of the entry, which then takes its place unless None is returned."""
        partial = entry.with_name(f".{entry.name}.partial")
        with self._writing():
            if entry.exists():
                _log.warning("The cache entry %s is incomplete or damaged, so it is made again", entry)
                shutil.rmtree(entry)
            # Whoever left a sibling behind is dead: it held the lock that this process now holds.
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        try:
            cost = make(partial)
            if cost is not None:
                with self._writing():
                    partial.rename(entry)
                    sync(entry.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cost

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"The cache {self.root} cannot be written ({error.strerror or error}): free some space there, or set "
                "cache_dir to another place"
            ) from error


def cache_root(cache_dir: str | None) -> Path:
    """Return ``cache_dir``, else $OFMU_CACHE, else ``ofmu`` under the user's cache directory."""
    chosen = cache_dir or os.environ.get("OFMU_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ofmu"


def content_key(parts: Mapping[str, Any]) -> str:
    """Return 32 hex digits of SHA-256 over ``parts`` as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def directory_hashes(directory: Path) -> dict[str, str]:
    """Return SHA-256 (hex) by relative path of every file under ``directory``, the manifest left out."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(directory).as_posix(): file_hash(path) for path in files}


def model_hashes(directory: Path) -> dict[str, str]:
    """Return SHA-256 (hex) by name of the files that make up a saved model: weights, configs and tokenizer."""
    files = sorted(path for path in directory.iterdir() if path.suffix in MODEL_FILES and path.name != MANIFEST)
    return {path.name: file_hash(path) for path in files}


def write_manifest(directory: Path, cost: Mapping[str, float], parts: Mapping[str, Any]) -> None:
    """Write the manifest after flushing the files that it vouches for."""
    files = directory_hashes(directory)
    for name in files:
        sync(directory / name)
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps({"files": files, "cost": cost, "made_from": parts}, indent=1), encoding="utf-8")
    sync(manifest)
    sync(directory)


def read_manifest(directory: Path) -> dict[str, float] | None:
    """Return the cost of a complete entry; None where a file is missing, added or changed by a single bit."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        sound = manifest["files"] == directory_hashes(directory)
        return dict(manifest["cost"]) if sound else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
