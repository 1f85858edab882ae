"""The formulas equal closed forms and exact arithmetic, and keep their invariances."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofmu.evaluation.metrics import formulas

losses = st.floats(0.0, 30.0)
samples = st.integers(2, 30).flatmap(
    lambda n: st.tuples(*[st.lists(st.floats(-8, 8), min_size=n, max_size=n).map(np.array)] * 2)
)


def exact_p_value(steps: int, rows: int) -> Fraction:
    """Return the two-sided exact p-value of D = steps/rows for two samples of size ``rows``, in integer arithmetic."""
    total = sum((-1) ** (k - 1) * math.comb(2 * rows, rows - k * steps) for k in range(1, rows // steps + 1))
    return Fraction(2 * total, math.comb(2 * rows, rows))


def log10_of(fraction: Fraction) -> float:
    return math.log10(fraction.numerator) - math.log10(fraction.denominator)


def shifted(steps: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two samples whose distribution functions differ by at most ``steps``/``rows``."""
    return np.arange(rows, dtype=float), np.arange(rows, dtype=float) + steps


@pytest.mark.parametrize(
    ("steps", "rows"), [(8, 40), (40, 40), (200, 400), (400, 400), (520, 520), (700, 700), (900, 2000), (9000, 9000)]
)
def test_log10_p_equals_exact_arithmetic_even_if_p_underflows(steps: int, rows: int) -> None:
    quality = formulas.forget_quality(*shifted(steps, rows))
    assert quality.statistic == pytest.approx(steps / rows)
    assert quality.log10_p_value == pytest.approx(log10_of(exact_p_value(steps, rows)), rel=1e-9)
    assert quality.rows == rows


def test_p_underflows_and_its_logarithm_does_not() -> None:
    quality = formulas.forget_quality(*shifted(700, 700))
    assert quality.p_value == 0.0
    assert -422 < quality.log10_p_value < -418


def test_p_values_of_40_rows_equal_the_official_ones(shared_data: Path) -> None:
    content = json.loads((shared_data / "tofu_official_logs" / "official_scores.json").read_text())
    for steps, p_value in content["ks_exact_two_sided"]["n=m=40, D=k/40"].items():
        assert formulas.forget_quality(*shifted(int(steps), 40)).p_value == pytest.approx(p_value, rel=1e-9)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(samples)
def test_forget_quality_is_symmetric_bounded_and_invariant_to_order_and_monotone_maps(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    left, right = pair
    quality = formulas.forget_quality(left, right)
    assert 0 <= quality.statistic <= 1
    assert 0 < quality.p_value <= 1
    assert quality.log10_p_value == pytest.approx(math.log10(quality.p_value))
    assert formulas.forget_quality(right, left) == quality
    assert formulas.forget_quality(left[::-1], right) == quality
    # Doubling is exact in floating point, so it makes no new ties.
    assert formulas.forget_quality(2 * left, 2 * right) == quality
    assert formulas.forget_quality(-left, -right).statistic == pytest.approx(quality.statistic)
    assert formulas.forget_quality(left, left).p_value == 1.0


@pytest.mark.parametrize("samples", [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0])])
def test_unequal_empty_and_nan_samples_raise(samples: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match=r"samples|NaN"):
        formulas.forget_quality(np.array(samples[0]), np.array(samples[1]))


def test_truth_ratios_equal_their_definitions() -> None:
    right, wrong = np.array([0.5, 2.0]), [np.array([1.0, 3.0]), np.array([0.25, 0.5, 1.0])]
    geometric = np.exp(formulas.log_truth_ratios(right, wrong))
    assert geometric == pytest.approx([math.exp(-2.0 + 0.5), math.exp(-(1.75 / 3) + 2.0)])
    arithmetic = np.exp(formulas.log_truth_ratios(right, wrong, "arithmetic"))
    p = math.exp
    assert arithmetic == pytest.approx([(p(-1) + p(-3)) / 2 / p(-0.5), (p(-0.25) + p(-0.5) + p(-1)) / 3 / p(-2)])


@settings(deadline=None)
@given(losses, st.lists(losses, min_size=1, max_size=5))
def test_the_arithmetic_ratio_is_never_below_the_geometric(right: float, wrong: list[float]) -> None:
    arguments = np.array([right]), [np.array(wrong)]
    arithmetic = formulas.log_truth_ratios(*arguments, "arithmetic")[0]
    assert arithmetic >= formulas.log_truth_ratios(*arguments, "geometric")[0] - 1e-12


@settings(deadline=None)
@given(st.lists(st.floats(-800, 800), min_size=1, max_size=20).map(np.array))
def test_summaries_of_truth_ratios_are_bounded_and_do_not_overflow(log_ratios: np.ndarray) -> None:
    assert 0 <= formulas.forget_truth_ratio(log_ratios) <= 1
    assert formulas.forget_truth_ratio(log_ratios) == pytest.approx(formulas.forget_truth_ratio(-log_ratios))
    assert 0 <= formulas.utility_truth_ratio(log_ratios) <= 1


def test_summaries_of_truth_ratios_equal_their_definitions() -> None:
    log_ratios = np.log([0.25, 4.0, 1.0])
    assert formulas.forget_truth_ratio(log_ratios) == pytest.approx((0.25 + 0.25 + 1) / 3)
    assert formulas.utility_truth_ratio(log_ratios) == pytest.approx(0.75 / 3)


def test_probabilities_equal_their_definitions() -> None:
    right = np.array([0.0, math.log(4)])
    assert formulas.probability(right) == pytest.approx((1 + 0.25) / 2)
    wrong = [np.log([2.0, 2.0]), np.log([4.0, 2.0])]
    assert formulas.normalised_probability(right, wrong) == pytest.approx((1 / 2 + 0.25 / 1.0) / 2)


def test_normalised_probability_does_not_underflow() -> None:
    assert formulas.normalised_probability(np.array([2000.0]), [np.array([2000.0])]) == pytest.approx(0.5)


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=9))
def test_a_harmonic_mean_lies_between_the_minimum_and_the_arithmetic_mean(values: list[float]) -> None:
    mean = formulas.harmonic_mean(values)
    assert min(values) - 1e-12 <= mean <= math.fsum(values) / len(values) + 1e-12


def test_a_harmonic_mean_with_a_zero_is_zero() -> None:
    assert formulas.harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert formulas.harmonic_mean([1.0, 0.0, 0.7]) == 0.0
    with pytest.raises(ValueError, match="harmonic"):
        formulas.harmonic_mean([])


@pytest.mark.parametrize(
    ("matches", "strength", "memorized"),
    [
        ([True] * 4, 1.0, 1.0),
        ([True, True, True, False], 0.0, 0.75),
        ([False] * 4, 0.0, 0.0),
        ([True, False, True, True], 0.5, 0.75),
        ([False, False, False, True], 0.25, 0.25),
        ([True], 1.0, 1.0),
        ([False], 0.0, 0.0),
    ],
)
def test_extraction_strength_and_memorization(matches: list[bool], strength: float, memorized: float) -> None:
    assert formulas.extraction_strength(np.array(matches)) == strength
    assert formulas.exact_memorization(np.array(matches)) == memorized


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_extraction_strength_equals_a_search_over_all_starts(matches: list[bool]) -> None:
    n = len(matches)
    smallest = next(k for k in range(n + 1) if all(matches[k:]))
    strength = formulas.extraction_strength(np.array(matches))
    assert strength == pytest.approx(1 - smallest / n)
    assert strength <= formulas.exact_memorization(np.array(matches)) + 1e-12


@pytest.mark.slow
def test_formulas_need_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, ofmu.evaluation.metrics.formulas, ofmu.evaluation.metrics.summary, ofmu.evaluation.official_log\n"
        "sys.exit(int(bool({'torch', 'transformers', 'ray', 'deepspeed'} & set(sys.modules))))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
