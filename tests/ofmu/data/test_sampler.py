from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofmu.data.sampler import MinibatchSampler


@given(rows=st.integers(1, 40), size=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_every_row_is_drawn_once_per_epoch(rows: int, size: int, seed: int) -> None:
    sampler = MinibatchSampler(range(rows), size, seed, "forget")
    drawn: list[int] = []
    while len(drawn) < 3 * rows:
        drawn.extend(sampler.draw())
    for epoch in range(3):
        assert Counter(drawn[epoch * rows : (epoch + 1) * rows]) == Counter(range(rows))


@given(skipped=st.integers(0, 30))
def test_a_position_is_the_whole_state(skipped: int) -> None:
    first = MinibatchSampler(range(17), 4, 3, "retain")
    for _ in range(skipped):
        first.draw()
    second = MinibatchSampler(range(17), 4, 3, "retain")
    second.position = first.position
    assert [first.draw() for _ in range(6)] == [second.draw() for _ in range(6)]


def padding(batches: list[list[int]]) -> float:
    return 1 - sum(map(sum, batches)) / sum(len(batch) * max(batch) for batch in batches)


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=500),
    size=st.integers(1, 12),
    skipped=st.integers(0, 30),
)
def test_grouped_minibatches_cover_every_epoch_and_follow_from_their_position(
    lengths: list[int], size: int, skipped: int
) -> None:
    rows = list(enumerate(lengths))

    def sampler() -> MinibatchSampler[tuple[int, int]]:
        return MinibatchSampler(rows, size, 3, "retain", lambda row: row[1])

    first, second = sampler(), sampler()
    for _ in range(2):
        batches: list[list[tuple[int, int]]] = []
        while sum(map(len, batches)) < len(rows):
            batches.append(first.draw())
        assert sorted(row for batch in batches for row in batch) == rows
        assert len(batches) == math.ceil(len(rows) / size)
        sizes = {len(batch) for batch in batches}
        assert max(sizes) <= size
        assert len(rows) > 50 * size or max(sizes) - min(sizes) <= 1
    first = sampler()
    for _ in range(skipped):
        first.draw()
    second.position = first.position
    assert [first.draw() for _ in range(6)] == [second.draw() for _ in range(6)]


def test_rows_of_similar_length_share_a_minibatch() -> None:
    lengths = [5 + 7 * n % 60 for n in range(203)]

    def epoch(length: Callable[[int], int] | None, seed: int = 0) -> list[list[int]]:
        sampler = MinibatchSampler(lengths, 8, seed, "forget", length)
        return [sampler.draw() for _ in range(25)]

    assert padding(epoch(None)) > 0.3
    grouped = epoch(lambda length: length)
    assert padding(grouped) < 0.05
    widest = [max(batch) for batch in grouped]
    assert widest != sorted(widest)
    assert any(batch != sorted(batch) for batch in grouped), "the first rows of a minibatch are a random part of it"
    assert grouped != epoch(lambda length: length, seed=1)


def test_another_seed_or_name_gives_another_order() -> None:
    def draw(seed: int, name: str) -> list[int]:
        return MinibatchSampler(range(1000), 8, seed, name).draw()

    assert len({tuple(draw(seed, name)) for seed in (0, 1) for name in ("forget", "retain")}) == 4


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="the forget set has no rows"):
        MinibatchSampler([], 4, 0, "forget")
