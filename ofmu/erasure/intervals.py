"""The mean of a few runs, and an interval of the mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float | None
    low: float | None
    high: float | None


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean, and the interval mean ± t·s/√n with n − 1 degrees of freedom.

    Without values all three are None. A single value has a mean and no interval.
    """
    if not values:
        return Interval(None, None, None)
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
