"""A comparison's statistics as plain functions on arrays. No Ray, no Optuna, no files. All objectives are costs.

The test is a sign-flip permutation test. Methods are paired by (seed, level). If two methods were alike, the
difference of each pair could equally have the other sign. p is the share of all 2^n sign patterns whose mean
difference is at least as far from 0. For many pairs, the share is estimated from random patterns.

Wilcoxon's signed-rank test on the seeds is not exact where differences are zero or tied. Such differences are common,
for example where neither method reaches a level. The permutation test is exact there, and n pairs can reach
p = 2^(1-n), while three seeds cannot reach a p below .25 under either test.

The pairs of one seed are not independent: the runs of a seed share minibatches, and the search that found their
settings. p is therefore too small. Three rules compensate for this. Levels that the same two runs meet count once. A
method counts as better only if it is better in the mean of every single seed. Nothing is marked on fewer than three
seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from tune.pareto import Points

Values = npt.NDArray[np.float64]

EXACT_PAIRS = 20
"""Up to so many pairs with a difference, all sign patterns are counted. For more pairs, patterns are sampled."""
_RESAMPLES = 100_000


@dataclass(frozen=True)
class PairedTest:
    """Two methods' values compared pair by pair."""

    gain: float
    """Mean over the pairs of the second method's cost minus the first's. Above 0, the first method is better."""
    p: float
    """Two-sided."""
    pairs: int
    min_attainable_p: float
    """The smallest p that the test could have given these pairs with any signs. At 1, no difference can be shown."""
    exact: bool
    """True if all sign patterns were counted; False if patterns were sampled."""
    consistent: bool
    """Whether the mean of every block has the sign of the gain."""


def best_at_levels(points: Points, bounded: int, sought: int, levels: Sequence[float]) -> Values:
    """Return, per level, the lowest cost in one column of the points that the level admits.

    A level admits a point whose cost in the column ``bounded`` is at most the level. Every value is that of a run:
    nothing is interpolated. The value is NaN where a level admits no point. Rows with a NaN are failed runs, which no
    level admits.

    Args:
        points: shape (points, objectives).
        bounded: column of the objective that the levels bound.
        sought: column of the objective that is returned.
        levels: upper bounds.
    """
    found = np.full(len(levels), np.nan)
    for index, level in enumerate(levels):
        # A level can be computed from the value that it is compared with. The slack absorbs the rounding error.
        inside = points[points[:, bounded] <= level + 1e-12 * max(1.0, abs(level)), sought]
        inside = inside[~np.isnan(inside)]
        if len(inside):
            found[index] = inside.min()
    return found


def bootstrap_interval(values: Values, seed: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean; None for fewer than two values.

    BCa intervals are undefined for equal values. With a handful of seeds any bootstrap interval is too narrow, since
    it cannot reach beyond the values.
    """
    if len(values) < 2:
        return None
    result = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        method="percentile",
        n_resamples=9999,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_test(first: Values, second: Values, seed: int, groups: Sequence[int] | None = None) -> PairedTest:
    """Compare two methods' costs, pair by pair.

    The test is exact for up to :data:`EXACT_PAIRS` pairs with a difference. A pair without a difference keeps its value
    under either sign, so that it does not change p.

    Args:
        first, second: shape (blocks, pairs per block).
        seed: of the sampled sign patterns.
        groups: widths of neighbouring columns in which equal pairs of one block count as one observation. Two levels
            that the same two runs meet carry the same information.
    """
    widths = [1] * first.shape[1] if groups is None else list(groups)
    blocks = [_differences(a, b, widths) for a, b in zip(first, second, strict=True)]
    differences = np.concatenate(blocks)
    gain = float(differences.mean())
    unequal = differences[differences != 0]
    means = np.array([block.mean() for block in blocks])
    consistent = bool(np.all(means > 0) if gain > 0 else np.all(means < 0))
    if not len(unequal):
        return PairedTest(0.0, 1.0, differences.size, 1.0, True, False)
    exact = len(unequal) <= EXACT_PAIRS
    p = sign_flip_p(unequal) if exact else _sampled_p(unequal, seed)
    return PairedTest(gain, p, differences.size, min_attainable_p(len(unequal)), exact, consistent)


def min_attainable_p(pairs: int) -> float:
    """Return the smallest p that the test can give for a number of pairs with a difference.

    A sampled p counts the observed pattern among the samples, and has two sides.
    """
    return 2.0 ** (1 - pairs) if pairs <= EXACT_PAIRS else 2 / (_RESAMPLES + 1)


def _differences(first: Values, second: Values, widths: Sequence[int]) -> Values:
    """Return the second block's costs minus the first's, with equal pairs of a group counted once."""
    ends = np.cumsum(widths)[:-1]
    parts = [np.unique(part, axis=1) for part in np.split(np.stack([first, second]), ends, axis=1)]
    differences: Values = np.concatenate([part[1] - part[0] for part in parts])
    return differences


def sign_flip_p(differences: Values) -> float:
    """Return the share of all 2^n sign patterns whose sum is at least as far from 0 as the sum of ``differences``."""
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    slack = 1e-9 * float(np.abs(differences).sum())
    return float(np.mean(np.abs(sums) >= abs(float(differences.sum())) - slack))


def _sampled_p(differences: Values, seed: int) -> float:
    """Return an estimate of :func:`sign_flip_p` from random sign patterns. The estimate is never 0."""
    result = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=1_000,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, corrected for multiple tests by Holm's step-down method (Scand. J. Statist. 6, 1979)."""
    count = len(p_values)
    corrected = [0.0] * count
    running = 0.0
    for position, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (count - position) * p_values[index]))
        corrected[index] = running
    return corrected


def mean_ranks(costs: Values) -> Values:
    """Return each method's mean rank over the columns of ``costs``, shape (methods, columns).

    Rank 1 is the best. Equal costs share the mean of their ranks.
    """
    ranks: Values = stats.rankdata(costs, axis=0).mean(axis=1)
    return ranks
