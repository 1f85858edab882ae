"""Batches on several ranks, which are simulated one after the other."""

from __future__ import annotations

from typing import Any

import pytest

from ofmu.evaluation.scoring.sharding import PassCounts, Shard, run_sharded

BATCHES = [[3, 0], [1], [2, 5, 7], [4], [6]]
PASSES = [2, 5, 1, 4, 3]


def run_all(size: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[list[list[int]], list[int]]:
    """Run every rank. Return the results on each rank, and the number of passes that each runs."""
    parts: list[dict[int, int]] = []
    monkeypatch.setattr("ofmu.evaluation.scoring.sharding.gather", lambda own, _: parts.append(own) or [{}])
    counts = []
    for rank in range(size):
        passed = [0]

        def dummy(passed: list[int] = passed) -> None:
            passed[0] += 1

        def run(batch: list[int], passed: list[int] = passed) -> list[int]:
            passed[0] += PASSES[BATCHES.index(batch)]
            return [10 * index for index in batch]

        shard = Shard(rank=rank, world_size=size, **options)
        run_sharded(BATCHES, run, shard, name="test", passes=PassCounts(PASSES, dummy))
        counts.append(passed[0])
    merged, found = [], [dict(part) for part in parts]
    monkeypatch.setattr("ofmu.evaluation.scoring.sharding.gather", lambda _own, _shard: found)
    for rank in range(size):
        shard = Shard(rank=rank, world_size=size, **options)
        merged.append(run_sharded(BATCHES, lambda batch: [10 * index for index in batch], shard, name="test"))
    return merged, counts


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_rank_gets_every_result_and_synchronized_ranks_run_equally_many_passes(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, counts = run_all(size, monkeypatch, synchronized=True)
    assert results == [[10 * index for index in range(8)]] * size
    assert counts == [sum(max(PASSES[start : start + size]) for start in range(0, 5, size))] * size
    _, independent = run_all(size, monkeypatch)
    assert sum(independent) == sum(PASSES)
