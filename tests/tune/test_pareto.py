from __future__ import annotations

import itertools
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.pareto import (
    GrowingFront,
    as_costs,
    choose_points,
    constrained_front_mask,
    front_mask,
    hypervolume,
    knee_index,
    reference_point,
)

SIDE = 6


def clouds(dimensions: int) -> st.SearchStrategy[np.ndarray]:
    row = st.tuples(*[st.integers(0, SIDE)] * dimensions)
    return st.lists(row, min_size=1, max_size=9).map(lambda rows: np.array(rows, dtype=float))


any_cloud = st.one_of(clouds(2), clouds(3))


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def cells_dominated(costs: np.ndarray) -> int:
    """Count the unit cells of the box [0, SIDE]^m whose lower corner is nowhere below some point."""
    corners = itertools.product(range(SIDE), repeat=costs.shape[1])
    return sum(any((row <= corner).all() for row in costs) for corner in corners)


@pytest.mark.slow
@given(any_cloud)
def test_the_front_equals_pairwise_comparison(costs):
    expected = [not any(dominates(other, row) for other in costs) for row in costs]
    assert front_mask(costs).tolist() == expected


@pytest.mark.slow
@given(any_cloud)
def test_hypervolume_counts_the_dominated_cells(costs):
    reference = np.full(costs.shape[1], float(SIDE))
    assert hypervolume(costs, reference) == pytest.approx(cells_dominated(costs))


@pytest.mark.slow
@given(any_cloud)
def test_dominated_points_add_no_hypervolume(costs):
    reference = np.full(costs.shape[1], float(SIDE))
    assert hypervolume(costs[front_mask(costs)], reference) == pytest.approx(hypervolume(costs, reference))


@pytest.mark.slow
@given(any_cloud, st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.integers(-5, 5))
def test_the_knee_ignores_shift_and_scale(costs, scales, shift):
    front = costs[front_mask(costs)]
    scaled = front * np.array(scales[: costs.shape[1]]) + shift
    assert knee_index(scaled) == knee_index(front)


def test_the_knee_of_a_bent_front_is_its_bend():
    assert knee_index(np.array([[0.0, 1.0], [0.2, 0.3], [0.6, 0.25], [1.0, 0.0]])) == 1


def test_a_straight_front_has_its_knee_at_the_last_point():
    assert knee_index(np.array([[1.0, 0.0], [0.0, 1.0]])) == 1


def test_an_end_of_the_front_is_the_knee_only_without_other_points():
    # Both points between the ends lie above the chord.
    assert knee_index(np.array([[0.0, 1.0], [0.3, 0.95], [0.6, 0.9], [1.0, 0.0]])) == 1
    assert knee_index(np.array([[0.0, 1.0], [1.0, 0.0]])) == 1
    assert knee_index(np.array([[0.2, 0.3]])) == 0


def test_an_empty_front_has_no_knee():
    with pytest.raises(ValueError, match="no knee"):
        knee_index(np.empty((0, 2)))


def test_directions_turn_into_costs():
    assert as_costs([[0.2, 0.7]], ["min", "max"]).tolist() == [[0.2, -0.7]]


def test_the_reference_point_is_the_worst_possible_or_the_worst_given_value():
    costs = as_costs([[0.2, 0.7, 40.0], [0.5, 0.9, 10.0]], ["min", "max", "min"])
    reference = reference_point(["ks_statistic", "model_utility", "seconds"], costs, ["min", "max", "min"])
    assert reference.tolist() == [1.0, 0.0, 40.0]


@pytest.mark.slow
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=25))
def test_a_growing_front_is_the_front_of_all_points(points):
    front, members = GrowingFront(3), set()
    for index, point in enumerate(points):
        members.add(index)
        members -= set(front.add(index, np.array(point, dtype=float)))
        so_far = points[: index + 1]
        expected = [
            number
            for number, one in enumerate(so_far)
            if not any(other != one and all(map(operator.le, other, one)) for other in so_far)
        ]
        assert sorted(members) == sorted(front.names) == expected
        assert np.flatnonzero(front_mask(np.array(so_far, dtype=float))).tolist() == expected
        assert front.costs.tolist() == [list(points[name]) for name in front.names]


VIOLATION = st.sampled_from([0.0, 0.0, 0.25, 0.5])


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), VIOLATION), min_size=1, max_size=20))
def test_a_constrained_front_holds_what_no_point_dominates_by_debs_rule(points):
    """Deb et al. 2002: feasible before infeasible; of two infeasible ones, the one that violates less."""

    def dominates(one, other):
        if one[2] != other[2]:
            return one[2] < other[2]
        return one[:2] != other[:2] and all(map(operator.le, one[:2], other[:2]))

    front, members = GrowingFront(2), set()
    for index, point in enumerate(points):
        members.add(index)
        members -= set(front.add(index, np.array(point[:2], dtype=float), point[2]))
        so_far = points[: index + 1]
        expected = [number for number, one in enumerate(so_far) if not any(dominates(other, one) for other in so_far)]
        costs, violations = np.array([point[:2] for point in so_far], dtype=float), np.array([p[2] for p in so_far])
        assert np.flatnonzero(constrained_front_mask(costs, violations)).tolist() == expected
        assert sorted(members) == sorted(front.names) == expected
        assert front.violation == min(violations)


def test_a_row_with_nan_is_kept():
    costs = np.array([[np.nan, 5.0], [1.0, 1.0], [2.0, 2.0]])
    assert front_mask(costs).tolist() == [True, True, False]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=7), st.integers(1, 7))
def test_chosen_points_keep_the_guarantee_of_greedy_selection(rows, count):
    costs, reference = np.array(rows, dtype=float), np.array([6.0, 6.0])
    chosen = choose_points(costs, reference, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(rows))
    best = max(
        hypervolume(costs[list(some)], reference) for some in itertools.combinations(range(len(rows)), len(chosen))
    )
    assert hypervolume(costs[chosen], reference) >= (1 - 1 / np.e) * best
    assert hypervolume(costs[chosen[:1]], reference) == max(hypervolume(row[None], reference) for row in costs)


def test_of_a_crowded_front_the_spread_points_are_chosen():
    costs = np.array([[0.1, 0.9], [0.11, 0.89], [0.5, 0.5], [0.51, 0.49], [0.9, 0.1]])
    assert sorted(choose_points(costs, np.array([1.0, 1.0]), 3)) in ([0, 2, 4], [1, 2, 4], [0, 3, 4], [1, 3, 4])
