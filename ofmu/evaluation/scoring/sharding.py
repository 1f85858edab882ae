"""Distribute batches over ranks, and gather the results on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ofmu.io.progress import track

BatchT = TypeVar("BatchT", bound=Iterable[int])
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """This process's rank in the process group."""

    rank: int = 0
    world_size: int = 1
    synchronized: bool = False
    """True: each forward pass is a collective, so all ranks must run equally many batches."""


@dataclass(frozen=True, slots=True)
class PassCounts:
    """How many forward passes each batch takes, for ranks that must run equally many."""

    of_batch: Sequence[int]
    dummy: Callable[[], object]
    """Runs one forward pass whose result is not used."""


def run_sharded(
    batches: Sequence[BatchT],
    run: Callable[[BatchT], Sequence[ResultT]],
    shard: Shard,
    *,
    name: str,
    work: Sequence[float] | None = None,
    passes: PassCounts | None = None,
) -> list[ResultT]:
    """Run every batch on one rank. Return all results on all ranks, in order of the indices.

    Args:
        batches: the indices of each batch.
        run: returns one result for each index of a batch.
        shard: this process's rank.
        name: what is done, for the progress.
        work: the work of each batch in any unit. None: all batches are alike.
        passes: the forward passes of each batch. None: ``run`` itself sees to it that synchronized ranks run equally
            many.
    """
    own: dict[int, ResultT] = {}
    size = shard.world_size
    rounds = -(-len(batches) // size)
    shares = None if work is None else [sum(work[start : start + size]) for start in range(0, len(batches), size)]
    for number in track(range(rounds), name, shares):
        position = number * shard.world_size + shard.rank
        if position < len(batches):
            own.update(zip(batches[position], run(batches[position]), strict=True))
        elif shard.synchronized and passes is None:
            run(batches[-1])  # Takes part in the other ranks' collectives. The result is not used.
        if shard.synchronized and passes is not None:
            of_round = passes.of_batch[number * size : (number + 1) * size]
            own_passes = of_round[shard.rank] if shard.rank < len(of_round) else 0
            for _ in range(max(of_round) - own_passes):
                passes.dummy()
    merged: dict[int, ResultT] = {}
    for part in gather(own, shard):
        merged.update(part)
    return [merged[index] for index in range(len(merged))]


def gather(own: dict[int, Any], shard: Shard) -> list[dict[int, Any]]:
    """Return what every rank gives, in rank order; collective."""
    if shard.world_size == 1:
        return [own]
    import torch.distributed as dist

    parts: list[Any] = [None] * shard.world_size
    dist.all_gather_object(parts, own)
    return parts
