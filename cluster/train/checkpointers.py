"""Checkpoints that are kept elsewhere than in a run's directory: by Ray Train, or at a URI."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import ray.train
from pyarrow.fs import FileSelector, FileType
from ray.train import Checkpoint

from cluster.storage.mirror import Mirror
from ofmu.checkpointing import barrier
from ofmu.engine.checkpoint import is_valid
from ofmu.io.files import storage_errors

if TYPE_CHECKING:
    from ofmu.checkpointing import ProgressCallback, WriteCheckpoint

_FOLDER = "checkpoints"


class RayCheckpointer:
    """Ray Train's checkpoints and metrics behind the trainer's reporter protocol."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._restored: tempfile.TemporaryDirectory[str] | None = None

    def latest_checkpoint(self) -> Path | None:
        """Return a local copy of the checkpoint that Ray Train restarts from, or of the newest whole one beside it."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        self._restored = tempfile.TemporaryDirectory(prefix="ofmu_restore_")
        found = Path(checkpoint.to_directory(f"{self._restored.name}/last"))
        if is_valid(found):
            return found
        others = [
            Path(Checkpoint(str(place), checkpoint.filesystem).to_directory(f"{self._restored.name}/{place.name}"))
            for place in _beside(checkpoint)
        ]
        return max(filter(is_valid, others), key=_rounds, default=None)

    def on_round_end(self, record: dict[str, Any], write: WriteCheckpoint | None) -> None:
        """Report the step; every rank hands in its own part, which Ray Train merges into one checkpoint."""
        if write is None:
            ray.train.report(record)
            return
        with tempfile.TemporaryDirectory(prefix="ofmu_checkpoint_") as directory:
            write(Path(directory))
            ray.train.report(record, checkpoint=Checkpoint.from_directory(directory))


def _beside(checkpoint: Checkpoint) -> list[PurePosixPath]:
    """Return where the run's other checkpoints lie."""
    own = PurePosixPath(checkpoint.path)
    found = checkpoint.filesystem.get_file_info(FileSelector(str(own.parent)))
    places = [PurePosixPath(info.path) for info in found if info.type is FileType.Directory]
    return [place for place in places if place.name.startswith("checkpoint_") and place != own]


def _rounds(directory: Path) -> int:
    """Return how many rounds a whole checkpoint holds."""
    description = json.loads((directory / "rank_00000.json").read_text(encoding="utf-8"))
    return len(description["state"]["history"])


class UriCheckpointer:
    """Keeps the two newest checkpoints at a mirror's URI; every rank sends its own part, from a folder of its own.

    Rank 0 sends the run's settings and history along, and tells the listener.
    """

    def __init__(self, rank: int, *, mirror: Mirror, listener: ProgressCallback | None = None) -> None:
        self._rank, self._mirror, self._listener = rank, mirror, listener

    def latest_checkpoint(self) -> Path | None:
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

    def on_round_end(self, record: dict[str, Any], write: WriteCheckpoint | None) -> None:
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
