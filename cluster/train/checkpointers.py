"""Checkpoints of a run whose directory is at a URI."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage.mirror import Mirror
from ofmu.engine.checkpoint import is_valid
from ofmu.engine.rank_zero import barrier
from ofmu.io.files import storage_errors
from ofmu.run_files import CHECKPOINTS, MODEL

if TYPE_CHECKING:
    from ofmu.checkpointing import ProgressCallback, WriteCheckpoint


class UriCheckpointer:
    """Keeps the two newest checkpoints at a mirror's URI. Every rank uploads its own part from its own folder.

    Rank 0 also uploads the run's config and history, and calls the progress callback.
    """

    def __init__(self, rank: int, *, mirror: Mirror, callback: ProgressCallback | None = None) -> None:
        self._rank, self._mirror, self._callback = rank, mirror, callback

    def latest_checkpoint(self) -> Path | None:
        """Download the newest checkpoint whose files are complete. Damaged checkpoints are skipped."""
        steps: dict[str, list[str]] = {}
        for name in self._mirror.files(CHECKPOINTS):
            steps.setdefault(name.rpartition("/")[0], []).append(name)
        for step in sorted(steps, reverse=True):
            local = self._mirror.local / step
            shutil.rmtree(local, ignore_errors=True)
            self._mirror.pull(steps[step])
            if is_valid(local):
                return local
        return None

    def on_round_end(self, record: dict[str, Any], write: WriteCheckpoint | None) -> None:
        """Report a round. If ``write`` is given, upload a checkpoint and delete the ones that it replaces."""
        if write is not None:
            self._save(f"{CHECKPOINTS}/step_{int(record['outer_step']):06d}", write)
        if self._rank == 0 and self._callback is not None:
            self._callback(record)

    def _save(self, step: str, write: WriteCheckpoint) -> None:
        local = self._mirror.local / step
        with storage_errors(local):
            shutil.rmtree(local, ignore_errors=True)
            local.mkdir(parents=True)
        if self._rank == 0:
            # An earlier attempt with more ranks may have left parts that this attempt does not overwrite.
            self._mirror.delete(step)
        barrier()
        write(local)
        self._mirror.push(step)
        shutil.rmtree(local)
        barrier()
        if self._rank == 0:
            self._mirror.push(without=(CHECKPOINTS, MODEL))
            kept = sorted({name.rpartition("/")[0] for name in self._mirror.files(CHECKPOINTS)})
            for old in kept[:-2]:
                self._mirror.delete(old)
        barrier()
