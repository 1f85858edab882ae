"""Checkpoints that are kept at a URI, so that a trial goes on from them on any node."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage import Mirror
from ofmu.checkpoint import is_valid
from ofmu.files import storage_errors
from ofmu.progress import barrier

if TYPE_CHECKING:
    from ofmu.progress import Listener, WriteCheckpoint

_FOLDER = "checkpoints"


class RemoteReporter:
    """Keeps the two newest checkpoints at a mirror's URI; every rank sends its own part, from a folder of its own.

    Rank 0 sends the run's settings and history along, and tells the listener.
    """

    def __init__(self, rank: int, *, mirror: Mirror, listener: Listener | None = None) -> None:
        self._rank, self._mirror, self._listener = rank, mirror, listener

    def latest(self) -> Path | None:
        """Fetch the newest checkpoint whose files are whole; a damaged one is passed over."""
        steps: dict[str, list[str]] = {}
        for name in self._mirror.files(_FOLDER):
            steps.setdefault(name.rpartition("/")[0], []).append(name)
        for step in sorted(steps, reverse=True):
            local = self._mirror.local / step
            shutil.rmtree(local, ignore_errors=True)
            self._mirror.pull(steps[step])
            if is_valid(local):
                return local
        return None

    def outer_step(self, record: dict[str, Any], write: WriteCheckpoint | None) -> None:
        """Write a checkpoint here, send it, and drop those that it replaces."""
        if write is not None:
            self._save(f"{_FOLDER}/step_{int(record['outer_step']):06d}", write)
        if self._rank == 0 and self._listener is not None:
            self._listener(record)

    def _save(self, step: str, write: WriteCheckpoint) -> None:
        local = self._mirror.local / step
        with storage_errors(local):
            shutil.rmtree(local, ignore_errors=True)
            local.mkdir(parents=True)
        if self._rank == 0:
            # an attempt with more ranks may have left parts that do not belong to this one
            self._mirror.delete(step)
        barrier()
        write(local)
        self._mirror.push(step)
        shutil.rmtree(local)
        barrier()
        if self._rank == 0:
            self._mirror.push(without=(_FOLDER, "model"))
            kept = sorted({name.rpartition("/")[0] for name in self._mirror.files(_FOLDER)})
            for old in kept[:-2]:
                self._mirror.delete(old)
        barrier()
