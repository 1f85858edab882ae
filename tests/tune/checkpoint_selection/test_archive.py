"""Which rounds an archive keeps and selects, and which trials it stops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tune.checkpoint_selection.archive import RoundArchive, Scored, Verdict
from tune.checkpoint_selection.config import CheckpointSelectionConfig

OBJECTIVES = {"ks_statistic": "min", "model_utility": "max"}
CELLS = 20


def scored(distance: float | None, utility: float | None, violation: float = 0.0) -> Scored:
    return Scored({"ks_statistic": distance, "model_utility": utility}, violation)


def area(points: Sequence[tuple[float, float]]) -> int:
    """Count the cells of a grid that a point dominates. The points lie on the grid, so this is their hypervolume."""
    rows, columns = np.mgrid[0:CELLS, 0:CELLS] + 0.5
    covered = np.zeros((CELLS, CELLS), dtype=bool)
    for distance, utility in points:
        covered |= (rows / CELLS > distance) & (columns / CELLS < utility)
    return int(covered.sum())


point = st.tuples(st.integers(0, CELLS), st.integers(0, CELLS)).map(lambda p: (p[0] / CELLS, p[1] / CELLS))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(point, min_size=1, max_size=4), min_size=1, max_size=6))
@example([[(0.7, 0.8), (0.6, 0.6)]])  # equal gains that floating point parts
def test_rounds_are_kept_and_selected_by_the_hypervolume_that_they_add(trials):
    archive, chosen = RoundArchive(OBJECTIVES, None), []
    for number, rounds in enumerate(trials):
        total, kept = len(rounds), None
        for round, values in enumerate(rounds, 1):
            gain, before = area([*chosen, values]), area([*chosen, kept[1]]) if kept else area(chosen)
            verdict = archive.report(number, round, total, scored(*values))
            assert verdict == Verdict(keep=round < total and gain > before)
            if verdict.keep:
                kept = round, values
        candidates = {total: rounds[-1]} | ({kept[0]: kept[1]} if kept else {})
        selected = archive.select(number, {round: scored(*values) for round, values in candidates.items()})
        best = max(candidates, key=lambda round: (area([*chosen, candidates[round]]), round))
        assert selected == best
        chosen.append(candidates[best])


def archive_with(values: tuple[float, float], margin: float | None = 0.2) -> RoundArchive:
    """Return an archive in which one trial stands for ``values``."""
    archive = RoundArchive(OBJECTIVES, margin)
    archive.report(0, 4, 4, scored(*values))
    assert archive.select(0, {4: scored(*values)}) == 4
    return archive


@pytest.mark.parametrize(
    ("values", "margin", "stops"),
    [
        ((0.75, 0.25), 0.2, True),
        ((0.69, 0.25), 0.2, False),  # a distance that is .2 better would add
        ((0.75, 0.31), 0.2, False),
        ((0.69, 0.31), 0.1, True),
        ((0.51, 0.49), 0.0, True),
        ((1.0, 0.0), None, False),
    ],
)
def test_a_trial_ends_if_much_better_objectives_would_still_add_nothing(values, margin, stops):
    assert archive_with((0.5, 0.5), margin).report(1, 1, 4, scored(*values)).stop is stops


def test_a_trial_that_has_a_round_worth_keeping_runs_on():
    archive = archive_with((0.5, 0.5))
    assert archive.report(1, 1, 4, scored(0.9, 0.9)) == Verdict(keep=True)
    assert archive.report(1, 2, 4, scored(0.9, 0.1)) == Verdict()
    archive.select(2, {4: scored(0.4, 0.95)})
    assert not archive.report(1, 3, 4, scored(0.9, 0.1)).stop, "no score of trial 2 on few rows is known"


def test_the_rounds_of_running_trials_stop_no_other_trial():
    archive = RoundArchive(OBJECTIVES, 0.0)
    assert archive.report(0, 1, 4, scored(0.1, 0.9)).keep
    assert archive.report(1, 1, 4, scored(0.9, 0.1)) == Verdict(keep=True)


def test_a_round_that_violates_a_constraint_is_not_kept():
    archive = RoundArchive(OBJECTIVES, None)
    assert archive.report(0, 1, 4, scored(0.9, 0.9)).keep
    assert archive.report(0, 2, 4, scored(0.1, 0.9, violation=0.1)) == Verdict()
    assert archive.select(0, {1: scored(0.9, 0.9), 4: scored(0.1, 0.9, violation=0.01)}) == 1
    assert archive.select(1, {1: scored(0.9, 0.9, violation=0.3), 4: scored(0.8, 0.1, violation=0.2)}) == 4


def test_a_trial_that_comes_no_nearer_to_its_constraints_ends():
    archive = RoundArchive(OBJECTIVES, None)
    assert archive.report(0, 1, 4, scored(0.5, 0.5, violation=0.3)) == Verdict()
    assert archive.report(0, 2, 4, scored(0.5, 0.5, violation=0.2)) == Verdict()
    assert archive.report(0, 3, 4, scored(0.5, 0.5, violation=0.2)) == Verdict(stop=True)
    assert archive.report(1, 1, 4, scored(0.5, 0.5)).keep
    assert archive.report(1, 2, 4, scored(0.4, 0.4, violation=0.2)) == Verdict()
    assert archive.report(1, 3, 4, scored(0.3, 0.3, violation=0.4)) == Verdict(stop=True)
    assert archive.report(2, 4, 4, scored(0.3, 0.3, violation=0.4)) == Verdict(), "nothing ends after the last round"


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_a_round_without_all_objectives_is_neither_kept_nor_selected(missing):
    archive = RoundArchive(OBJECTIVES, 0.0)
    assert archive.report(0, 1, 4, scored(missing, 0.9)) == Verdict()
    assert archive.select(0, {1: scored(0.9, 0.1), 4: scored(missing, 0.9)}) == 1
    assert archive.select(1, {1: scored(missing, 0.9), 4: scored(missing, 0.9)}) == 4


def test_an_objective_without_bounds_is_measured_by_the_values_that_were_seen():
    objectives = {"model_utility": "max", "seconds": "min"}
    archive = RoundArchive(objectives, 0.5)
    both = [{"model_utility": 0.9, "seconds": 10.0}, {"model_utility": 0.2, "seconds": 110.0}]
    for number, values in enumerate(both):
        archive.report(number, 2, 2, Scored(values))
        archive.select(number, {2: Scored(values)})
    assert archive.report(2, 1, 2, Scored({"model_utility": 0.3, "seconds": 70.0})).stop
    assert not archive.report(3, 1, 2, Scored({"model_utility": 0.3, "seconds": 50.0})).stop


@pytest.mark.parametrize(
    ("total", "rounds"), [(1, ()), (2, (1,)), (3, (1, 2)), (4, (1, 2, 3)), (10, (3, 5, 8)), (40, (10, 20, 30))]
)
def test_the_scored_rounds_are_fractions_of_a_trials_own(total, rounds):
    assert CheckpointSelectionConfig().scored_rounds(total) == rounds
