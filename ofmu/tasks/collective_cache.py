"""The cache of several ranks. Rank 0 finds, locks and writes an entry. All ranks build the entry together.

Without this, each rank would build the same entry alone, one after the other. The other ranks wait for as long as rank
0 takes to read the files of an entry, to wait for another process's lock, or to build alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch.distributed as dist

from ofmu.engine.rank_zero import Failure, announce, hear
from ofmu.errors import OfmuError, StorageError
from ofmu.io.cache import MANIFEST, Cache, Entry
from ofmu.io.files import FileHashes


class _Message(TypedDict, total=False):
    """What rank 0 tells the other ranks."""

    state: Literal["build", "done", "failed"]
    directory: str
    """build: the directory that rank 0 fills. done: the entry."""
    cost: dict[str, float]
    created: bool
    failure: Failure


class CollectiveCache:
    """A cache that the ranks of the process group use together, in the same order. All ranks see its directory.

    Args:
        root: the directory of the cache.
        hashes: hashes of files that this process has read.
    """

    def __init__(self, root: Path, hashes: FileHashes | None = None) -> None:
        self._cache = Cache(root, hashes=hashes)

    def get_or_create(
        self,
        kind: str,
        parts: Mapping[str, Any],
        build: Callable[[Path], Mapping[str, float]],
        *,
        collective: bool = True,
    ) -> Entry:
        """Return the entry for ``parts``, as :meth:`ofmu.io.cache.Cache.get_or_create` does; collective.

        Args:
            kind: kind of the entry.
            parts: everything that the content depends on, as JSON values.
            build: fills the directory of the entry and returns the cost. Only rank 0 may write.
            collective: True: every rank calls ``build``. False: only rank 0 does.

        Raises:
            StorageError: the cache cannot be written, or a rank does not see the entry.
            OfmuError: ``build`` raised the error on rank 0.
        """
        if dist.get_rank() != 0:
            return self._follow(build if collective else None)

        def announced(directory: Path) -> Mapping[str, float]:
            _announce({"state": "build", "directory": str(directory)})
            return build(directory)

        try:
            entry = self._cache.get_or_create(kind, parts, announced)
        except OfmuError as error:
            _announce({"state": "failed", "failure": Failure.of(error)})
            raise
        _announce({"state": "done", "directory": str(entry.path), "cost": dict(entry.cost), "created": entry.created})
        return entry

    def _follow(self, build: Callable[[Path], Mapping[str, float]] | None) -> Entry:
        own_error: OfmuError | None = None
        while (message := _heard())["state"] == "build":
            if build is not None:
                try:
                    build(Path(message["directory"]))
                except OfmuError as error:
                    # Rank 0 meets the same error, and says so. A collective of this rank alone would never end.
                    own_error = error
        if own_error is not None:
            raise own_error
        if message["state"] == "failed":
            raise message["failure"].error()
        path = Path(message["directory"])
        if not (path / MANIFEST).is_file():
            raise StorageError(
                f"Rank {dist.get_rank()} does not see {path}, which rank 0 has made: set cache_dir to a directory that "
                "all nodes share"
            )
        return Entry(path, message["cost"], message["created"])


def _announce(message: _Message) -> None:
    announce(message)


def _heard() -> _Message:
    message: _Message = hear()
    return message
