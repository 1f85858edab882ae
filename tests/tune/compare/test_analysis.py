from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.compare.summary import Summary
from tune.compare.tables import verdict
from tune.pareto import hypervolume
from tune.space.constraints import Limit

PATIENT = settings(deadline=None, max_examples=50)
VALUE = st.floats(0, 1).map(lambda value: round(value, 3))
POINT = st.lists(st.tuples(VALUE, VALUE), min_size=3, max_size=3)
METHOD = st.lists(POINT, min_size=1, max_size=4)


def worse(points, by=0.05):
    return [[(d + by, u - by) for d, u in seeds] for seeds in points]


def of_pair(summary, first, second, quantity="levels"):
    for test in summary.tests:
        if test.quantity == quantity and {test.first, test.second} == {first, second}:
            return test
    raise AssertionError("no such test")


SPREAD = [[(0.2, 0.5)] * 3, [(0.4, 0.68)] * 3, [(0.6, 0.77)] * 3]


@pytest.mark.slow
@PATIENT
@given(METHOD)
def test_identical_methods_are_never_marked(summarised, points):
    summary = summarised({"a": points, "b": points, "c": points})
    assert set(summary.best.values()) == {None}
    assert {method.mean_rank for method in summary.methods} == {2.0}
    assert {test.p for test in summary.tests} == {1.0}


@pytest.mark.slow
@PATIENT
@given(METHOD, METHOD)
def test_a_dominated_method_never_wins(summarised, points, other):
    summary = summarised({"other": other, "dominated": worse(points), "better": points})
    assert "dominated" not in summary.best.values()
    for quantity in ("levels", "hypervolume"):
        test = of_pair(summary, "dominated", "better", quantity)
        assert test.gain <= 0
    assert summary.method("dominated").mean_rank >= summary.method("better").mean_rank
    assert summary.method("dominated").hypervolume <= summary.method("better").hypervolume


@pytest.mark.slow
@PATIENT
@given(METHOD, METHOD)
def test_the_order_of_methods_does_not_matter(summarised, first, second):
    there, back = summarised({"a": first, "b": second}), summarised({"b": second, "a": first})
    assert there.best == back.best
    assert there.method("a") == back.method("a")
    assert of_pair(there, "a", "b").p == of_pair(back, "a", "b").p


def test_a_method_that_is_better_at_every_level_and_seed_is_marked(summarised):
    summary = summarised({"b": worse(SPREAD), "a": SPREAD, "c": worse(SPREAD, 0.1)})
    assert summary.best == {"levels": "a", "hypervolume": None}
    assert [method.name for method in summary.methods] == ["a", "b", "c"]
    assert of_pair(summary, "a", "b").p_holm < 0.05
    # Two tests over three seeds: neither p can be below .25.
    assert {test.p for test in summary.tests if test.quantity == "hypervolume"} == {0.25}


def test_many_seeds_let_hypervolume_decide_too(summarised):
    points = [[(0.3 + 0.01 * seed, 0.6)] for seed in range(8)]
    many = [[values[0] for values in points]]
    summary = summarised({"a": many, "b": worse(many)}, seeds=8)
    assert summary.best == {"levels": "a", "hypervolume": "a"}


def test_one_seed_on_which_it_is_worse_keeps_a_method_from_being_marked(summarised):
    mixed = [[good, good, bad] for (good, *_), bad in zip(SPREAD, [(0.95, 0.1)] * 3, strict=True)]
    other = worse(SPREAD, 0.02)
    summary = summarised({"mixed": mixed, "other": other}, significance=0.49)
    assert not of_pair(summary, "mixed", "other").consistent
    assert summary.best["levels"] is None


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_nothing_is_marked_on_fewer_than_three_seeds(summarised, seeds):
    points = [[values[0]] * seeds for values in SPREAD]
    summary = summarised({"a": points, "b": worse(points)}, seeds=seeds)
    assert of_pair(summary, "a", "b").p <= 2.0 ** (1 - 5 * seeds)
    assert summary.best["levels"] == ("a" if seeds == 3 else None)


def test_corrected_p_decides_and_not_p(summarised):
    methods = {"best": SPREAD} | {f"m{index}": worse(SPREAD) for index in range(4)}
    summary = summarised(methods, significance=5e-5)
    p, corrected = of_pair(summary, "best", "m0").p, of_pair(summary, "best", "m0").p_holm
    assert p < 5e-5 < corrected
    assert summary.best["levels"] is None


def test_the_numbers_of_a_small_case_by_hand(summarised):
    a = [[(0.3, 0.6), (0.35, 0.5)], [(0.5, 0.7), None]]
    summary = summarised(
        {"a": a, "b": [[(0.95, 0.78), (0.95, 0.75)]]},
        seeds=2,
        forgetting_levels=[0.5, 1.0],
        utility_levels=[0.8],
    )
    # The target has (.9, .8), the retrained model 0. The levels are .45 and 0, and 80 % of .8.
    assert summary.levels.forgetting == pytest.approx((0.45, 0))
    assert summary.levels.utility == pytest.approx((0.64,))
    assert summary.reference_point == {"ks_statistic": 1.0, "model_utility": 0.0}
    method = summary.method("a")
    assert method.hypervolumes == pytest.approx((0.7 * 0.6 + 0.5 * 0.1, 0.65 * 0.5))
    assert method.hypervolume == pytest.approx((0.47 + 0.325) / 2)
    assert method.utility_at_forgetting == ((0.6, 0.5), (None, None))
    assert method.forgetting_at_utility == ((0.5, None),)
    assert summary.method("b").forgetting_at_utility == ((0.95, 0.95),)
    # Utility gains .6/.8 and .5/.8 at the only level that a reaches, forgetting (.95 − .5)/.7 and −.05/.7. Two are 0.
    assert of_pair(summary, "a", "b").gain == pytest.approx((0.75 + 0.625 + (0.45 - 0.05) / 0.7) / 6)
    assert method.cost.run_gradient_evaluations == 40
    assert method.cost.run_peak_memory_bytes == 5e8 + 2
    assert (method.points[1].runs[1].metrics, method.points[1].runs[1].reason) == (None, "the loss became NaN")


def test_without_a_reference_levels_lead_to_the_best_value_of_any_method(summarised):
    summary = summarised({"a": SPREAD, "b": worse(SPREAD)}, reference=False, forgetting_levels=[1.0])
    assert summary.levels.forgetting == pytest.approx((0.2,))
    assert summary.method("a").utility_at_forgetting == ((0.5, 0.5, 0.5),)
    assert summary.reference is None


def test_a_method_without_points_is_last_and_gets_no_numbers(summarised):
    summary = summarised({"none": [], "a": SPREAD, "failed": [[None, None, None]]})
    for name in ("none", "failed"):
        method = summary.method(name)
        assert method.hypervolumes == (0.0, 0.0, 0.0)
        assert {value for level in method.utility_at_forgetting for value in level} == {None}
        assert method.cost.run_seconds is None
    assert summary.best["levels"] == "a"
    assert of_pair(summary, "none", "failed").p == 1


@pytest.mark.slow
@PATIENT
@given(METHOD)
def test_hypervolumes_are_those_of_each_seeds_runs(summarised, points):
    summary = summarised({"a": points, "b": SPREAD})
    reference = np.array([summary.reference_point["ks_statistic"], -summary.reference_point["model_utility"]])
    for seed in range(3):
        costs = np.array([[seeds[seed][0], -seeds[seed][1]] for seeds in points])
        assert summary.method("a").hypervolumes[seed] == pytest.approx(hypervolume(costs, reference))


def test_a_run_that_violates_a_constraint_counts_as_if_it_had_no_result(summarised):
    kept, broken = [(0.2, 0.5)] * 3, [(0.1, 0.05)] * 3
    points = {"both": [kept, broken], "none": [broken, broken]}
    summary = summarised(points, limits=(Limit("model_utility", "min", 0.4),))
    volumes = {method.name: (method.hypervolume, method.infeasible_runs) for method in summary.methods}
    assert volumes == {"both": (pytest.approx(0.8 * 0.5), 3), "none": (0.0, 6)}
    assert summary.method("none").utility_at_forgetting[0] == (None, None, None)
    assert summary.limits == ("model_utility ≥ 0.4",)
    assert "both 3, none 6" in verdict(summary)
    assert Summary.model_validate_json(summary.to_json()) == summary
    free = summarised(points)
    assert [method.infeasible_runs for method in free.methods] == [0, 0]
    assert free.method("none").hypervolume == pytest.approx(0.9 * 0.05)
