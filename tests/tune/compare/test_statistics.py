from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tune.compare.statistics import (
    best_at_levels,
    bootstrap_interval,
    holm,
    mean_ranks,
    paired_test,
    sign_flip_p,
)

SMALL = st.floats(-1, 1).map(lambda value: round(value, 2))

PATIENT = settings(deadline=None, max_examples=50)


def grids(rows: int, columns: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.lists(SMALL, min_size=columns, max_size=columns), min_size=rows, max_size=rows).map(np.array)


@pytest.mark.slow
@PATIENT
@given(st.lists(SMALL.filter(bool), min_size=2, max_size=9))
def test_p_is_that_of_scipys_exact_permutation_test(differences):
    values = np.array(differences)
    result = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(values) == pytest.approx(min(1.0, result.pvalue))


@pytest.mark.parametrize("count", [1, 3, 6, 18])
def test_one_sided_differences_give_the_minimum_attainable_p(count):
    first = np.zeros((1, count))
    result = paired_test(first, first + np.linspace(0.1, 1, count), seed=0)
    assert result.p == result.min_attainable_p == 2.0 ** (1 - count)
    assert result.exact
    assert result.gain > 0


@pytest.mark.parametrize("count", [40, 60])
def test_one_sided_differences_give_the_minimum_attainable_p_of_a_sampled_test(count):
    """No sampled pattern of so many signs is as far from 0, so p is twice that of the observed pattern alone."""
    result = paired_test(np.zeros((1, count)), np.linspace(0.1, 1, count)[None], seed=0)
    assert not result.exact
    assert result.p == pytest.approx(2 / 100_001)
    assert result.p == result.min_attainable_p


def test_three_seeds_can_show_nothing_and_three_times_six_pairs_can():
    seeds = paired_test(np.zeros((3, 1)), np.ones((3, 1)), seed=0)
    assert seeds.p == 0.25 == stats.wilcoxon(np.ones(3), mode="exact").pvalue
    assert paired_test(np.zeros((3, 6)), np.ones((3, 6)), seed=0).p < 1e-5


@pytest.mark.slow
def test_many_pairs_are_sampled_and_match_the_normal_limit():
    differences = np.random.default_rng(1).normal(0.25, 1, (6, 10))
    result = paired_test(np.zeros((6, 10)), differences, seed=0)
    assert not result.exact
    z = differences.sum() / np.sqrt((differences**2).sum())
    assert result.p == pytest.approx(2 * stats.norm.sf(z), rel=0.1)
    assert result == paired_test(np.zeros((6, 10)), differences, seed=0)


@pytest.mark.slow
@PATIENT
@given(grids(3, 3), grids(3, 3))
def test_swapping_the_methods_turns_the_gain_and_keeps_p(first, second):
    there, back = paired_test(first, second, 0), paired_test(second, first, 0)
    assert there.gain == pytest.approx(-back.gain)
    assert (there.p, there.min_attainable_p) == (back.p, back.min_attainable_p)


@PATIENT
@given(grids(2, 4))
def test_a_method_does_not_differ_from_itself(values):
    result = paired_test(values, values, 0)
    assert (result.gain, result.p, result.min_attainable_p, result.consistent) == (0, 1, 1, False)


def test_consistency_requires_every_block():
    first = np.zeros((3, 2))
    assert paired_test(first, np.array([[1.0, 1], [0.5, -0.4], [0.1, 0]]), 0).consistent
    assert not paired_test(first, np.array([[1.0, 1], [0.5, 0.4], [0.1, -0.2]]), 0).consistent


def test_pairs_without_difference_change_nothing():
    differences = np.array([[0.3, -0.1, 0.2, 0.4]])
    padded = np.array([[0.3, 0, -0.1, 0.2, 0, 0.4]])
    whole, shorter = paired_test(padded * 0, padded, 0), paired_test(differences * 0, differences, 0)
    assert (whole.p, whole.min_attainable_p) == (shorter.p, shorter.min_attainable_p)
    direct = stats.permutation_test((padded[0],), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert whole.p == pytest.approx(direct.pvalue)


def test_levels_that_the_same_two_runs_meet_count_once():
    first, second = np.array([[1.0, 1, 2, 2, 2]]), np.array([[3.0, 3, 3, 4, 4]])
    # (1, 3) twice and (2, 3); in the other group (2, 4) twice
    result = paired_test(first, second, 0, groups=(3, 2))
    assert (result.pairs, result.gain, result.p) == (3, pytest.approx((2 + 1 + 2) / 3), 0.25)
    assert paired_test(first, second, 0, groups=(5,)).pairs == 3
    assert paired_test(first, second, 0).pairs == 5


def test_holm_by_hand():
    # sorted: .005·4, .01·3, .03·2, and .04·1, which is raised to the value before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@PATIENT
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_step_down_rule_rejects(p_values):
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for position, index in enumerate(np.argsort(p_values, kind="stable")):
            if (len(p_values) - position) * p_values[index] > level:
                break
            rejected.add(int(index))
        assert {index for index, p in enumerate(corrected) if p <= level} == rejected


@PATIENT
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_the_bootstrap_interval_is_that_of_all_resamples(values):
    interval = bootstrap_interval(np.array(values), seed=0)
    means = np.sort([np.mean(sample) for sample in itertools.product(values, repeat=3)])
    # 27 means are equally likely. The outermost has 1/27 > 2.5 % if all values differ.
    assert interval == pytest.approx((means[0], means[-1]), abs=1e-9)


@pytest.mark.slow
def test_the_bootstrap_interval_of_many_values_is_the_normal_one():
    values = np.random.default_rng(0).normal(2, 1, 400)
    low, high = bootstrap_interval(values, seed=3)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert bootstrap_interval(values[:1], seed=0) is None


@PATIENT
@given(grids(5, 2), st.lists(SMALL, min_size=1, max_size=3))
def test_the_best_at_a_level_is_the_value_of_a_run(points, levels):
    found = best_at_levels(points, 0, 1, levels)
    for level, value in zip(levels, found, strict=True):
        inside = [row[1] for row in points if row[0] <= level]
        assert (value == min(inside)) if inside else np.isnan(value)


def test_failed_runs_satisfy_no_level():
    assert np.isnan(best_at_levels(np.array([[np.nan, np.nan]]), 0, 1, [1.0])).all()
    assert np.isnan(best_at_levels(np.empty((0, 2)), 0, 1, [1.0])).all()


def test_ranks_share_ties():
    assert mean_ranks(np.array([[1.0, 3], [2, 3], [3, 1]])).tolist() == [(1 + 2.5) / 2, (2 + 2.5) / 2, (3 + 1) / 2]
