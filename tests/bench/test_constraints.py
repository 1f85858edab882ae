"""Replays of recorded searches: what a sampler gains from a constraint that it knows."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from bench_constraints import FIRST, Recorded, read_searches, replay


@pytest.fixture(scope="module")
def searches(shared_data: Path) -> list[Recorded]:
    return read_searches(shared_data / "repselect_search")


def test_the_records_tell_which_trials_broke_the_bound(searches: list[Recorded]) -> None:
    assert len(searches) == 25
    for search in searches:
        assert len(set(search.values[~search.kept])) == 1
        assert (~search.kept).sum() >= 2
        index, distance = search.nearest({name: low for name, (low, _, _) in search.settings.items()})
        assert 0 <= index < 30
        assert distance >= 0
        assert search.reached([search.original]) == 0.0
        assert search.reached(search.values[search.kept].tolist()) == 1.0


@pytest.mark.slow
def test_a_sampler_that_knows_the_bound_keeps_it_more_often_than_chance(searches: list[Recorded]) -> None:
    few = searches[::6]
    share = {
        way: statistics.fmean(
            statistics.fmean(replay(search, way, seed)[1][FIRST:]) for search in few for seed in range(2)
        )
        for way in ("random", "constraint")
    }
    assert share["constraint"] > share["random"] + 0.05
