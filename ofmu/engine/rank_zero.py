"""Work that rank 0 does alone. The other ranks wait for as long as it takes, and hear whether it failed.

A collective of torch ends with an error after the time limit of its group, which is 10 minutes with NCCL and 30 with
gloo. Ranks that have nothing to do must therefore not wait in one. They ask the store of the group whether rank 0 is
there, and only then begin the collective. If the process of rank 0 dies, its launcher ends them, or the store is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from ofmu.errors import ClusterError, OfmuError, RunError, error_named

ResultT = TypeVar("ResultT")
_LONGEST_PAUSE = 1.0
"""Seconds between two questions to the store, after a long wait."""
_CALLS = "ofmu/calls of rank {}"
"""The store's counter of a rank's calls of :func:`_wait_for_rank_0`."""


@dataclass(frozen=True)
class Failure:
    """An error that ended the work of rank 0, as the other ranks hear of it."""

    kind: str
    text: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return what the other ranks hear of an error. Only an OfmuError tells them what to do."""
        if isinstance(error, OfmuError):
            return cls(type(error).__name__, str(error))
        return cls(RunError.__name__, f"Rank 0 ended with {type(error).__name__}: its message says why")

    def error(self) -> OfmuError:
        """Return the error for the other ranks to raise."""
        return error_named(self.kind, self.text)


def on_rank_0(work: Callable[[], ResultT], *, meanwhile: Callable[[], object] = lambda: None) -> ResultT:
    """Return on every rank what ``work`` returns on rank 0; collective. One process alone does the work.

    Args:
        work: is called on rank 0. What it returns can be pickled.
        meanwhile: is called on the other ranks. If ``work`` takes part in collectives, this is their part in them.

    Raises:
        OfmuError: ``work`` raised it on rank 0.
        RunError: ``work`` raised another error on rank 0. There, that error is raised.
        ClusterError: the process of rank 0 is gone.
    """
    if not _has_other_ranks():
        return work()
    if dist.get_rank() != 0:
        meanwhile()
        heard = hear()
        if isinstance(heard, Failure):
            raise heard.error()
        found: ResultT = heard
        return found
    try:
        result = work()
    except Exception as error:
        # Not KeyboardInterrupt, which ends the other ranks too: nobody would hear.
        announce(Failure.of(error))
        raise
    announce(result)
    return result


def barrier() -> None:
    """Wait for the other ranks: for rank 0 as long as it takes. Return at once without other ranks."""
    if _has_other_ranks():
        _wait_for_rank_0()
        dist.barrier()


def announce(message: object) -> None:
    """Give a message of rank 0 to the other ranks, each of which calls :func:`hear`."""
    _wait_for_rank_0()
    dist.broadcast_object_list([message], src=0)


def hear() -> Any:
    """Return what rank 0 announces, however long that takes.

    Raises:
        ClusterError: the process of rank 0 is gone.
    """
    _wait_for_rank_0()
    box: list[Any] = [None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _has_other_ranks() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _wait_for_rank_0() -> None:
    """Return when rank 0 has called this function as often as this rank has. Rank 0 returns at once."""
    store, rank, pause = _get_default_store(), dist.get_rank(), 0.001
    try:
        calls = store.add(_CALLS.format(rank), 1)
        while rank != 0 and store.add(_CALLS.format(0), 0) < calls:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    except RuntimeError as error:
        raise ClusterError(
            f"Rank {rank} waited for rank 0, whose process is gone: the message of rank 0 says why, if there is one"
        ) from error
