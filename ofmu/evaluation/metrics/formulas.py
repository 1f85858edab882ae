"""The field's metrics as pure functions of per-row numbers. Arrays are NumPy float64, and logarithms are natural.

Truth ratio, forget quality, probability and model utility follow TOFU (Maini et al., arXiv 2401.06121). Extraction
strength follows Carlini et al. (arXiv 2012.07805), as Wang et al. (arXiv 2406.13748) use it for unlearning. Exact
memorization follows Tirumala et al. (arXiv 2205.10770).
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

FloatArray = NDArray[np.float64]

# Below this p-value, which is near the smallest float, the logarithm is computed from the leading term instead.
_TINY_P = 1e-200


def log_truth_ratios(
    right: FloatArray, wrong: Sequence[FloatArray], definition: TruthRatio = "geometric"
) -> FloatArray:
    """Return log R = log(P(wrong) / P(right)) of each row, shape (rows,). P is the probability per token.

    Args:
        right: mean loss of each row's right answer in nats per token, shape (rows,).
        wrong: mean losses of each row's wrong answers in nats per token, one array of shape (wrong answers,) per row.
        definition: ``geometric`` averages the log-probabilities of the wrong answers. ``arithmetic`` averages their
            probabilities.
    """
    if definition == "geometric":
        log_wrong = [-np.mean(losses) for losses in wrong]
    else:
        log_wrong = [logsumexp(-losses) - math.log(len(losses)) for losses in wrong]
    return np.asarray(log_wrong, dtype=np.float64) + np.asarray(right, dtype=np.float64)


def forget_truth_ratio(log_ratios: FloatArray) -> float:
    """Return the mean over rows of min(R, 1/R). 1: right and wrong answers are equally likely."""
    return float(np.mean(np.exp(-np.abs(log_ratios))))


def utility_truth_ratio(log_ratios: FloatArray) -> float:
    """Return the mean over rows of max(0, 1 − R). 1: wrong answers have probability 0."""
    return float(np.mean(-np.expm1(np.minimum(log_ratios, 0.0))))


@dataclass(frozen=True, slots=True)
class ForgetQuality:
    """A two-sided two-sample Kolmogorov-Smirnov test between the truth ratios of a model and of the reference."""

    statistic: float
    p_value: float
    log10_p_value: float
    """Finite even if ``p_value`` underflows to 0."""
    rows: int
    """Size of each sample."""


def forget_quality(log_ratios: FloatArray, reference_log_ratios: FloatArray) -> ForgetQuality:
    """Compare the truth ratios of a model with those of the retrained reference on the same rows.

    The test is invariant under an increasing map of both samples, so logarithms give the result of the ratios.

    Args:
        log_ratios: log R of the model, shape (rows,).
        reference_log_ratios: log R of the reference, shape (rows,).

    Raises:
        ValueError: the samples differ in length, are empty, or hold a NaN.
    """
    rows = len(log_ratios)
    if rows == 0 or rows != len(reference_log_ratios):
        raise ValueError(f"both samples must cover the same rows, not {rows} and {len(reference_log_ratios)}")
    if np.isnan(log_ratios).any() or np.isnan(reference_log_ratios).any():
        raise ValueError("truth ratios must not be NaN")
    with warnings.catch_warnings():
        # If rounding lifts the exact p-value above 1, SciPy warns and takes the asymptotic value. Both are near 1.
        warnings.filterwarnings("ignore", message="ks_2samp: Exact calculation unsuccessful", category=RuntimeWarning)
        result = ks_2samp(log_ratios, reference_log_ratios, alternative="two-sided", method="auto")
    statistic, p_value = float(result.statistic), float(result.pvalue)
    if p_value >= _TINY_P:
        return ForgetQuality(statistic, p_value, math.log10(p_value), rows)
    return ForgetQuality(statistic, p_value, _log10_p_leading_term(round(statistic * rows), rows), rows)


def _log10_p_leading_term(steps: int, rows: int) -> float:
    """Return log10 of 2·C(2n, n − h)/C(2n, n), the first term of the exact p-value at D = h/n.

    The next term is smaller by a factor of about p³ (Hodges, Arkiv för Matematik 3, 1958), which is negligible for p
    below 1e-200.

    Args:
        steps: h.
        rows: n.
    """
    log_p = math.log(2.0) + 2.0 * math.lgamma(rows + 1) - math.lgamma(rows - steps + 1) - math.lgamma(rows + steps + 1)
    return log_p / math.log(10.0)


def probability(losses: FloatArray) -> float:
    """Return the mean over rows of exp(−loss).

    Args:
        losses: mean loss of each row's answer in nats per token, shape (rows,).
    """
    return float(np.mean(np.exp(-losses)))


def normalised_probability(right: FloatArray, wrong: Sequence[FloatArray]) -> float:
    """Return the mean over rows of P(right) / (P(right) + Σ P(wrong)). P is the probability per token.

    Args:
        right: mean loss of each row's right answer in nats per token, shape (rows,).
        wrong: mean losses of each row's wrong answers in nats per token, one array of shape (wrong answers,) per row.
    """
    shares = [np.exp(-loss - logsumexp(-np.append(others, loss))) for loss, others in zip(right, wrong, strict=True)]
    return float(np.mean(shares))


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean of non-negative numbers. If one number is 0, the mean is 0.

    Raises:
        ValueError: there is no number, or a negative one.
    """
    # statistics.harmonic_mean rounds once and this formula twice, so their last bits differ.
    if not values or min(values) < 0:
        raise ValueError("a harmonic mean needs at least one value and no negative one")
    return 0.0 if min(values) == 0 else len(values) / math.fsum(1.0 / value for value in values)


def extraction_strength(matches: NDArray[np.bool_]) -> float:
    """Return 1 − k/n. From token k on, every teacher-forced argmax of the answer equals its token.

    k is the smallest such start, and n is the number of tokens. 1: the whole answer follows from the prompt. 0: the
    last token is wrong.

    Args:
        matches: whether the argmax at each answer token equals the token, without EOS, shape (tokens,).
    """
    wrong = np.flatnonzero(~np.asarray(matches, dtype=bool))
    start = 0 if len(wrong) == 0 else int(wrong[-1]) + 1
    return 1.0 - start / len(matches)


def exact_memorization(matches: NDArray[np.bool_]) -> float:
    """Return the fraction of answer tokens whose teacher-forced argmax equals the token.

    Args:
        matches: whether the argmax at each answer token equals the token, without EOS, shape (tokens,).
    """
    return float(np.mean(matches))
