"""The comparison's statistics as plain functions on arrays: no Ray, no Optuna, no files. All objectives are costs.

Which test, and why: methods are paired by (seed, level), and each pair's difference may equally have had the other
sign if the two methods were alike; the exact distribution of the mean difference over all 2ⁿ sign patterns gives p.
Compared with Wilcoxon's signed-rank test on the seeds alone, this stays exact where differences are zero or tied
(common: neither method reaches a level), and it can become significant at few seeds: n pairs reach p = 2¹⁻ⁿ, and
three seeds alone stop at .25 under either test. The price: runs of one seed share minibatches and the search that
found their settings, so pairs within a seed are not independent, and p is too small by what they share. Hence three
cautions: levels that the same two runs meet count once, a method counts as better only if it is so in the mean of
every single seed, and nothing is said of fewer than three seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from tune.results.pareto import Points, hypervolume

Values = npt.NDArray[np.float64]

_EXACT_PAIRS = 20
_RESAMPLES = 100_000


@dataclass(frozen=True)
class PairedTest:
    """Two methods' values compared pair by pair."""

    gain: float
    """Mean over the pairs of the second method's cost minus the first's: above 0, the first is better."""
    p: float
    """Two-sided."""
    pairs: int
    least_p: float
    """The smallest p that so many pairs, equal ones included, could have given: at 1, nothing can be seen."""
    exact: bool
    """True: all sign patterns were counted; False: random ones."""
    agrees: bool
    """Whether the mean of every block has the sign of the gain."""


def choose_points(costs: Points, reference: Points, count: int) -> list[int]:
    """Return up to ``count`` rows, in the order chosen, each adding the most hypervolume to those before it.

    Greedy subset selection reaches at least 1 − 1/e of the best subset's hypervolume (Nemhauser et al. 1978; for
    hypervolume Guerreiro et al., Evolutionary Computation 24(3), 2016). Rows that add nothing come last, in order,
    so that all are returned where ``count`` allows.
    """
    chosen: list[int] = []
    left = list(range(len(costs)))
    while left and len(chosen) < count:
        volumes = [hypervolume(costs[[*chosen, row]], reference) for row in left]
        chosen.append(left.pop(int(np.argmax(volumes))))
    return chosen


def best_at_levels(points: Points, bounded: int, sought: int, levels: Sequence[float]) -> Values:
    """Return, per level, the least cost in column ``sought`` among points whose column ``bounded`` is at most it.

    No interpolation: a value is one that a run really had; NaN where no point satisfies the level. Rows with a NaN
    are runs that failed, and satisfy nothing.
    """
    found = np.full(len(levels), np.nan)
    for index, level in enumerate(levels):
        # the slack keeps a level met that was computed from the very value it is compared with
        inside = points[points[:, bounded] <= level + 1e-12 * max(1.0, abs(level)), sought]
        inside = inside[~np.isnan(inside)]
        if len(inside):
            found[index] = inside.min()
    return found


def bootstrap_interval(values: Values, seed: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean, or None for fewer than two values.

    The percentile interval, since BCa's correction is undefined where values are equal. With a handful of seeds any
    bootstrap interval is too narrow: it cannot reach beyond the values seen.
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
    """Compare two methods' costs, arrays of shape (blocks, pairs per block) that are paired element by element.

    ``groups`` are the widths of neighbouring columns in which equal pairs of one block are one observation: two
    levels that the same two runs meet say nothing twice. Exact for up to 20 pairs that differ; a pair without
    difference keeps its value under either sign, so it takes no part in the counting.
    """
    widths = [1] * first.shape[1] if groups is None else list(groups)
    blocks = [_differences(a, b, widths) for a, b in zip(first, second, strict=True)]
    differences = np.concatenate(blocks)
    gain = float(differences.mean())
    unequal = differences[differences != 0]
    means = np.array([block.mean() for block in blocks])
    agrees = bool(np.all(means > 0) if gain > 0 else np.all(means < 0))
    if not len(unequal):
        return PairedTest(0.0, 1.0, differences.size, 1.0, True, False)
    exact = len(unequal) <= _EXACT_PAIRS
    p = sign_flip_p(unequal) if exact else _sampled_p(unequal, seed)
    return PairedTest(gain, p, differences.size, float(2.0 ** (1 - len(unequal))), exact, agrees)


def _differences(first: Values, second: Values, widths: Sequence[int]) -> Values:
    """Return what the second costs more than the first, equal pairs within a group once."""
    ends = np.cumsum(widths)[:-1]
    parts = [np.unique(part, axis=1) for part in np.split(np.stack([first, second]), ends, axis=1)]
    whole: Values = np.concatenate([part[1] - part[0] for part in parts])
    return whole


def sign_flip_p(differences: Values) -> float:
    """Return the share of all 2ⁿ sign patterns under which the sum is at least as far from 0 as it is."""
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    slack = 1e-9 * float(np.abs(differences).sum())
    return float(np.mean(np.abs(sums) >= abs(float(differences.sum())) - slack))


def _sampled_p(differences: Values, seed: int) -> float:
    """Return what :func:`sign_flip_p` does, from random sign patterns, never 0."""
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
    """Return the p-values corrected for their number by Holm's step-down method (Scand. J. Statist. 6, 1979)."""
    count = len(p_values)
    corrected = [0.0] * count
    running = 0.0
    for position, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (count - position) * p_values[index]))
        corrected[index] = running
    return corrected


def mean_ranks(costs: Values) -> Values:
    """Return each method's rank, 1 the best, averaged over the columns of (methods, blocks); ties share a rank."""
    ranks: Values = stats.rankdata(costs, axis=0).mean(axis=1)
    return ranks
