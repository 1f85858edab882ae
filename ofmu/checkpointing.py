"""Checkpoints of a run, and the callback that follows the run's progress."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ofmu.engine.checkpoint import is_valid
from ofmu.engine.rank_zero import barrier
from ofmu.io.files import storage_errors, sync

ProgressCallback = Callable[[dict[str, Any]], None]
"""Called on rank 0 with the round's line of ``history.jsonl``."""
WriteCheckpoint = Callable[[Path], None]
"""Writes this rank's part of a checkpoint into a directory."""


class Checkpointer(Protocol):
    """Keeps checkpoints and reports rounds. Both methods are collective."""

    def latest_checkpoint(self) -> Path | None:
        """Return the directory of the newest complete checkpoint. All ranks get the same directory."""

    def on_round_end(self, record: dict[str, Any], write: WriteCheckpoint | None) -> None:
        """Report a round. If ``write`` is given, write a checkpoint with it."""


class LocalCheckpointer:
    """Keeps the two newest checkpoints in a directory that all ranks see. Rank 0 calls the progress callback."""

    def __init__(self, directory: Path, rank: int, callback: ProgressCallback | None = None) -> None:
        self._directory, self._rank, self._callback = directory, rank, callback

    def latest_checkpoint(self) -> Path | None:
        """Return the newest checkpoint whose files are complete. Damaged checkpoints are skipped."""
        if not self._directory.is_dir():
            return None
        return next((path for path in reversed(self._complete()) if is_valid(path)), None)

    def on_round_end(self, record: dict[str, Any], write: WriteCheckpoint | None) -> None:
        """Report a round. A checkpoint gets a temporary name until every rank has written its part."""
        if write is not None:
            self._save(int(record["outer_step"]), write)
        if self._rank == 0 and self._callback is not None:
            self._callback(record)

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
                for old in self._complete()[:-2]:
                    shutil.rmtree(old)
            barrier()

    def _complete(self) -> list[Path]:
        return sorted(self._directory.glob("step_*"))
