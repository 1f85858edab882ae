from __future__ import annotations

from collections import Counter

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


def test_another_seed_or_name_gives_another_order() -> None:
    def draw(seed: int, name: str) -> list[int]:
        return MinibatchSampler(range(1000), 8, seed, name).draw()

    assert len({tuple(draw(seed, name)) for seed in (0, 1) for name in ("forget", "retain")}) == 4


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="the forget set has no rows"):
        MinibatchSampler([], 4, 0, "forget")
