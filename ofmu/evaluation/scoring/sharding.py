"""Batches dealt to ranks, and their results brought together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """This process's place among the ranks."""

    rank: int = 0
    world_size: int = 1
    synchronized: bool = False
    """All ranks must run equally many batches, because each forward pass is a collective."""


def global_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of indices in order of length, so that little is padded; ties keep their order."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batches_by_label(labels: Sequence[str], make: Callable[[list[int]], list[list[int]]]) -> list[list[int]]:
    """Return the batches that ``make`` forms of positions with the same label.

    A row then shares its batch with rows of its own set alone, so its scores are the same to the last bit whatever
    other sets are scored with it.
    """
    members: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    return [batch for indices in members.values() for batch in make(indices)]


def run_sharded(
    batches: Sequence[list[int]], run: Callable[[list[int]], Sequence[Result]], shard: Shard
) -> list[Result]:
    """Run every batch on one rank and return all results on all ranks, in order of their indices."""
    mine: dict[int, Result] = {}
    rounds = -(-len(batches) // shard.world_size)
    for number in range(rounds):
        position = number * shard.world_size + shard.rank
        if position < len(batches):
            mine.update(zip(batches[position], run(batches[position]), strict=True))
        elif shard.synchronized:
            run(batches[-1])  # a dummy, only to take part in the other ranks' collectives
    merged: dict[int, Result] = {}
    for part in _gather(mine, shard):
        merged.update(part)
    return [merged[index] for index in range(len(merged))]


def _gather(mine: dict[int, Any], shard: Shard) -> list[dict[int, Any]]:
    if shard.world_size == 1:
        return [mine]
    import torch.distributed as dist

    parts: list[Any] = [None] * shard.world_size
    dist.all_gather_object(parts, mine)
    return parts
