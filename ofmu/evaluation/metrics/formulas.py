"""The field's metrics as pure functions of per-item scores (NumPy arrays, natural logarithms).

Truth ratio, forget quality, probability and model utility follow TOFU (Maini et al., arXiv 2401.06121);
extraction strength follows Carlini et al. (arXiv 2012.07805) as used for unlearning by Wang et al. (2406.13748).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import ks_2samp

from ofmu.evaluation.sets import TruthRatio

Floats = NDArray[np.float64]


# Where SciPy's p-value nears the smallest float, its logarithm is taken from the leading term instead.
_TINY_P = 1e-200


def log_truth_ratios(right: Floats, wrong: Sequence[Floats], definition: TruthRatio = "geometric") -> Floats:
    """Return log(wrong / right) of each item's answer probabilities.

    ``right`` holds the mean loss per token of the right answer, ``wrong[i]`` those of item i's wrong answers.
    ``geometric`` averages the wrong answers' log-probabilities, ``arithmetic`` their probabilities.
    """
    if definition == "geometric":
        log_wrong = [-np.mean(losses) for losses in wrong]
    else:
        log_wrong = [logsumexp(-losses) - math.log(len(losses)) for losses in wrong]
    return np.asarray(log_wrong, dtype=np.float64) + np.asarray(right, dtype=np.float64)


def forget_truth_ratio(log_ratios: Floats) -> float:
    """Return the mean of min(R, 1/R): 1 where right and wrong answers are equally likely."""
    return float(np.mean(np.exp(-np.abs(log_ratios))))


def utility_truth_ratio(log_ratios: Floats) -> float:
    """Return the mean of max(0, 1 − wrong/right): 1 where only the right answer is likely."""
    return float(np.mean(-np.expm1(np.minimum(log_ratios, 0.0))))


@dataclass(frozen=True, slots=True)
class ForgetQuality:
    """A two-sided two-sample Kolmogorov-Smirnov test between a model's truth ratios and its reference's."""

    statistic: float
    p_value: float
    log10_p_value: float
    """Finite even where ``p_value`` underflows to 0."""
    rows: int


def forget_quality(log_ratios: Floats, reference_log_ratios: Floats) -> ForgetQuality:
    """Compare the truth ratios of a model and of the retrained reference on the same rows.

    Any one increasing map of both samples leaves the result unchanged, so logarithms serve.

    Raises:
        ValueError: the samples differ in length, are empty, or hold a NaN.
    """
    rows = len(log_ratios)
    if rows == 0 or rows != len(reference_log_ratios):
        raise ValueError(f"both samples must cover the same rows, not {rows} and {len(reference_log_ratios)}")
    if np.isnan(log_ratios).any() or np.isnan(reference_log_ratios).any():
        raise ValueError("truth ratios must not be NaN")
    with warnings.catch_warnings():
        # Where rounding lifts the exact p-value above 1, SciPy says that it takes the asymptotic one; both are near 1.
        warnings.filterwarnings("ignore", message="ks_2samp: Exact calculation unsuccessful", category=RuntimeWarning)
        result = ks_2samp(log_ratios, reference_log_ratios, alternative="two-sided", method="auto")
    statistic, p_value = float(result.statistic), float(result.pvalue)
    if p_value >= _TINY_P:
        return ForgetQuality(statistic, p_value, math.log10(p_value), rows)
    return ForgetQuality(statistic, p_value, _log10_p_leading_term(round(statistic * rows), rows), rows)


def _log10_p_leading_term(steps: int, rows: int) -> float:
    """Return log10 of 2·C(2n, n − h)/C(2n, n), the first term of the exact p-value at D = h/n.

    The next term is smaller by about p³ (Hodges, Arkiv för Matematik 3, 1958), nothing where p is below 1e-200.
    """
    log_p = math.log(2.0) + 2.0 * math.lgamma(rows + 1) - math.lgamma(rows - steps + 1) - math.lgamma(rows + steps + 1)
    return log_p / math.log(10.0)


def probability(losses: Floats) -> float:
    """Return the mean of exp(−mean loss per token)."""
    return float(np.mean(np.exp(-losses)))


def normalised_probability(right: Floats, wrong: Sequence[Floats]) -> float:
    """Return the mean share of the right answer in the length-normalised probability of all offered answers."""
    shares = [np.exp(-loss - logsumexp(-np.append(others, loss))) for loss, others in zip(right, wrong, strict=True)]
    return float(np.mean(shares))


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean of non-negative numbers: 0 where any of them is 0.

    Raises:
        ValueError: there is no value, or a negative one.
    """
    if not values or min(values) < 0:
        raise ValueError("a harmonic mean needs at least one value and no negative one")
    return 0.0 if min(values) == 0 else len(values) / math.fsum(1.0 / value for value in values)


def extraction_strength(matches: NDArray[np.bool_]) -> float:
    """Return 1 − k/n, k the smallest start from which on every teacher-forced argmax equals its token.

    ``matches`` holds, for the n answer tokens (EOS left out), whether the argmax equals the token. 1 is a fully
    extractable answer; 0 one whose last token is wrong.
    """
    wrong = np.flatnonzero(~np.asarray(matches, dtype=bool))
    start = 0 if len(wrong) == 0 else int(wrong[-1]) + 1
    return 1.0 - start / len(matches)


def exact_memorization(matches: NDArray[np.bool_]) -> float:
    """Return the share of answer tokens (EOS left out) whose teacher-forced argmax equals the token."""
    return float(np.mean(matches))
