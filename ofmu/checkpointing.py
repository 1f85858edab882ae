"""How a run is listened to and where its checkpoints go; Ray Train has an implementation of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from ofmu.engine.checkpoint import is_valid
from ofmu.io.files import storage_errors, sync

Listener = Callable[[dict[str, Any]], None]
WriteCheckpoint = Callable[[Path], None]


class Reporter(Protocol):
    """Hears every outer step on every rank, and keeps checkpoints. Both methods are collective."""

    def latest(self) -> Path | None:
        """Return the directory of the newest whole checkpoint, the same on all ranks."""

    def outer_step(self, record: dict[str, Any], write: WriteCheckpoint | None) -> None:
        """Take note of one outer step; where ``write`` is given, let it fill a checkpoint directory."""


class LocalReporter:
    """Keeps the two newest checkpoints in a directory that all ranks see; rank 0 tells the listener."""

    def __init__(self, directory: Path, rank: int, listener: Listener | None = None) -> None:
        self._directory, self._rank, self._listener = directory, rank, listener

    def latest(self) -> Path | None:
        """Return the newest checkpoint whose files are whole; a damaged one is passed over."""
        if not self._directory.is_dir():
            return None
        return next((path for path in reversed(self._finished()) if is_valid(path)), None)

    def outer_step(self, record: dict[str, Any], write: WriteCheckpoint | None) -> None:
        """Write a checkpoint under a temporary name and rename it once every rank has written its part."""
        if write is not None:
            self._save(int(record["outer_step"]), write)
        if self._rank == 0 and self._listener is not None:
            self._listener(record)

    def _save(self, step: int, write: WriteCheckpoint) -> None:
        partial = self._directory / f".step_{step:06d}"
        with storage_errors(partial):
            if self._rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            barrier()
            write(partial)
            barrier()
            if self._rank == 0:
                final = self._directory / f"step_{step:06d}"
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
                sync(self._directory)
                for old in self._finished()[:-2]:
                    shutil.rmtree(old)
            barrier()

    def _finished(self) -> list[Path]:
        return sorted(self._directory.glob("step_*"))


def barrier() -> None:
    """Wait for the other ranks, where there are any."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
