"""The fit of a difference step, on functions whose derivative, truncation and rounding are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from analytic import THETA, Point
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.methods.ofmu.step_size import FittedStep, fit_step

SPACE = TorchEngine(Point(THETA), CostTracker()).space
GENERATOR = torch.Generator().manual_seed(0)
EXACT = torch.randn(6, generator=GENERATOR, dtype=torch.float64)
BEND = torch.randn(6, generator=GENERATOR, dtype=torch.float64)
NOISE = torch.randn(6, generator=GENERATOR, dtype=torch.float64)


class Difference:
    """EXACT + truncation·c^p + rounding/c. The rounding has another sign at every step."""

    def __init__(self, truncation: float, rounding: float, order: int = 2) -> None:
        self.truncation, self.rounding, self.order = truncation, rounding, order
        self.steps: list[float] = []

    def __call__(self, step: float) -> list[Tensor]:
        self.steps.append(step)
        sign = (-1.0) ** len(self.steps)
        error = self.truncation * step**self.order * BEND + sign * self.rounding / step * NOISE
        return [EXACT + error]


def fit(difference: Callable[[float], list[Tensor]], start: float, tolerance: float, order: int = 2) -> FittedStep:
    return fit_step(SPACE, difference, SPACE.norm, start, difference(start), order=order, tolerance=tolerance)


def error_of(fitted: FittedStep) -> float:
    return float((fitted.value[0] - EXACT).norm() / EXACT.norm())


def test_an_accurate_start_is_kept_after_one_further_difference() -> None:
    difference = Difference(truncation=1e3, rounding=0)
    fitted = fit(difference, 1e-4, 1e-3)
    assert fitted.step == 1e-4
    assert difference.steps == [1e-4, 2e-4]
    assert torch.equal(fitted.value[0], difference(1e-4)[0])


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("size", [1e3, 1e5, 1e7])
def test_a_step_that_is_too_long_is_shortened_until_the_difference_is_accurate(order: int, size: float) -> None:
    difference = Difference(truncation=size ** (order / 2), rounding=1e-12, order=order)
    fitted = fit(difference, 1e-2, 1e-3, order)
    assert fitted.step < 1e-2
    assert error_of(fitted) <= 1e-3
    assert error_of(fitted) <= fitted.error <= 1e-3


def test_the_fit_stops_where_rounding_takes_over_and_reports_what_is_left() -> None:
    # The least possible error is at c ≈ 1e-4, and far above the tolerance.
    difference = Difference(truncation=1e6, rounding=1e-6)
    fitted = fit(difference, 1e-2, 1e-6)
    steps = [1e-2 / 4**power for power in range(8)]
    least = min(error_of(FittedStep(step, 0.0, Difference(1e6, 1e-6)(step))) for step in steps)
    assert error_of(fitted) <= 3 * least
    assert error_of(fitted) / 3 <= fitted.error
    assert len(difference.steps) <= 10


def test_a_jump_leaves_a_large_error() -> None:
    """At a jump of the gradient, a difference grows as 1/c, whatever the step."""

    def difference(step: float) -> list[Tensor]:
        return [EXACT + 0.3 / step * NOISE]

    assert fit(difference, 1e-4, 1e-3).error > 0.3


def test_a_difference_that_is_not_finite_is_never_chosen() -> None:
    def difference(step: float) -> list[Tensor]:
        return [EXACT * (math.nan if step > 5e-4 else 1.0)]

    fitted = fit(difference, 1e-3, 1e-3)
    assert fitted.step < 5e-4
    assert error_of(fitted) == 0


def test_a_vanishing_difference_needs_no_fit() -> None:
    fitted = fit(lambda step: [torch.zeros(6, dtype=torch.float64)], 1e-4, 1e-3)
    assert (fitted.step, fitted.error) == (1e-4, 0.0)
