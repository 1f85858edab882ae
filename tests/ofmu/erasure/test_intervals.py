from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ofmu.erasure.intervals import mean_interval


def test_the_interval_is_that_of_scipy():
    values = [0.2, 0.5, 0.45, 0.7]
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    interval = mean_interval(values)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((np.mean(values), low, high))


def test_one_run_has_a_mean_and_no_interval():
    assert (mean_interval([0.5]).mean, mean_interval([0.5]).low) == (0.5, None)
    assert mean_interval([]).mean is None
