"""Distribute batches over ranks, and gather the results on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ofmu.io.progress import track

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """This process's rank in the process group."""

    rank: int = 0
    world_size: int = 1
    synchronized: bool = False
    """True: each forward pass is a collective, so all ranks must run equally many batches."""


def global_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of indices in order of length, which needs little padding. Equal lengths keep their order."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batches_by_label(labels: Sequence[str], make_batches: Callable[[list[int]], list[list[int]]]) -> list[list[int]]:
    """Return batches of indices. All indices of a batch have the same label.

    With the evaluation set as label, a row shares its batch only with rows of its own set. So the row's scores are the
    same to the last bit, whatever other sets are scored.

    Args:
        labels: the label of each index.
        make_batches: forms batches of the indices with one label.
    """
    members: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    return [batch for indices in members.values() for batch in make_batches(indices)]


def run_sharded(
    batches: Sequence[list[int]],
    run: Callable[[list[int]], Sequence[ResultT]],
    shard: Shard,
    *,
    name: str,
    work: Sequence[float] | None = None,
) -> list[ResultT]:
    """Run every batch on one rank. Return all results on all ranks, in order of the indices.

    Args:
        batches: the indices of each batch.
        run: returns one result for each index of a batch.
        shard: this process's rank.
        name: what is done, for the progress.
        work: the work of each batch in any unit. None: all batches are alike.
    """
    own: dict[int, ResultT] = {}
    size = shard.world_size
    rounds = -(-len(batches) // size)
    shares = None if work is None else [sum(work[start : start + size]) for start in range(0, len(batches), size)]
    for number in track(range(rounds), name, shares):
        position = number * shard.world_size + shard.rank
        if position < len(batches):
            own.update(zip(batches[position], run(batches[position]), strict=True))
        elif shard.synchronized:
            run(batches[-1])  # Takes part in the other ranks' collectives. The result is not used.
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
