"""Means and deviations of points on further seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tune.rundir.seed_runs import Confirmation, PointRuns, SeedRun, Spread


def point(trial: int, *values: float | None) -> PointRuns:
    runs = [
        SeedRun(seed=seed, directory=f"{trial}-{seed}", reason="it diverged")
        if value is None
        else SeedRun(
            seed=seed, directory=f"{trial}-{seed}", metrics={"ks_statistic": value, "model_utility": 1 - value}
        )
        for seed, value in enumerate(values, 1)
    ]
    return PointRuns(trial=trial, settings={}, runs=tuple(runs))


def test_the_spread_is_that_of_the_runs_that_have_the_metric():
    values = [0.2, 0.5, 0.35]
    spread = point(3, 0.2, None, 0.5, 0.35).spread("ks_statistic")
    assert spread is not None
    assert (spread.mean, spread.deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert spread.runs == 3
    assert str(spread) == "0.35 ± 0.15"
    assert point(3, None, None).spread("ks_statistic") is None
    assert point(3, 0.2).spread("seconds") is None


def test_one_run_has_no_deviation():
    spread = point(3, 0.25).spread("ks_statistic")
    assert spread is not None
    assert math.isnan(spread.deviation)
    assert (str(spread), spread.half_length) == ("0.25", 0.0)


def test_a_confirmation_keeps_its_numbers_on_disk_and_plots_what_has_both():
    confirmation = Confirmation(seeds=(1, 2), points=(point(3, 0.2, 0.4), point(7, None, None)))
    assert Confirmation.model_validate(confirmation.model_dump(mode="json")) == confirmation
    (plotted,) = confirmation.plotted("ks_statistic", "model_utility")
    assert (plotted.trial, plotted.x.mean, plotted.y.mean) == (3, pytest.approx(0.3), pytest.approx(0.7))
    assert confirmation.spread(7, "ks_statistic") is None
    assert isinstance(confirmation.spread(3, "ks_statistic"), Spread)
    assert confirmation.spread(99, "ks_statistic") is None
