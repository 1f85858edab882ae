"""The step of a finite difference, fitted to the model and to the direction.

A difference D(c) at step c has two errors. Truncation falls with the step as c^p, with the order p = 2 for central and
p = 1 for forward differences. Rounding grows as 1/c. No constant step suits all models: the step at which both errors
are small depends on ‖θ‖ and on the curvature along the direction.

The fit compares differences at two steps, as Richardson's extrapolation does (Press et al., Numerical Recipes, section
5.7). It divides the step by 4 until the estimated error is small enough, or until rounding takes over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ofmu.vectors.base import Vector, VectorSpace

_RATIO = 4.0
"""Ratio of two neighbouring steps."""
_SMALLEST = 1e-9
"""No step below this one is tried. In fp32, such a step moves no weight."""
_PATIENCE = 2
"""Steps without a smaller error after which the fit ends."""


@dataclass(frozen=True)
class FittedStep:
    """A step, the difference at this step, and what is known of its error."""

    step: float
    """c"""
    error: float
    """Estimated error of the difference, relative to the norm of the difference."""
    value: Vector
    """The vector that contains the difference at this step."""


def fit_step(
    space: VectorSpace,
    difference: Callable[[float], Vector],
    size: Callable[[Vector], float],
    start: float,
    at_start: Vector,
    *,
    order: int,
    tolerance: float,
) -> FittedStep:
    """Return ``start`` if the difference there is accurate, else the most accurate of the smaller steps.

    The start is kept if the difference changes by at most ``tolerance·(2^p − 1)`` when the step doubles: its
    truncation is then within the tolerance. Every further step costs one call of ``difference``. All ranks take the
    same decisions, since they see the same norms.

    Args:
        space: compares vectors.
        difference: returns a vector that contains the difference at a step.
        size: returns the norm of the difference in such a vector.
        start: the step to begin with.
        at_start: the value of ``difference`` at ``start``.
        order: p, 2 for central and 1 for forward differences.
        tolerance: the error at which the fit ends.
    """
    last_size = size(at_start)
    change = _change(space, difference(2 * start), at_start, last_size)
    best = FittedStep(start, change, at_start)
    if change <= tolerance * (2**order - 1):
        return best
    shrinkage = _RATIO**order
    last, truncation, waited = best, change / (2**order - 1), 0
    while best.error > tolerance and waited < _PATIENCE and last.step / _RATIO >= _SMALLEST:
        step = last.step / _RATIO
        value = difference(step)
        value_size = size(value)
        change = _change(space, value, last.value, value_size)
        noise = _noise(change, truncation * (1 - 1 / shrinkage))
        # The last step's noise is known only now: it is a quarter of the noise at this step.
        last_noise = noise * value_size / (_RATIO * last_size) if last_size else 0.0
        refined = FittedStep(last.step, math.hypot(truncation, last_noise), last.value)
        truncation = change / (shrinkage - 1)
        last, last_size = FittedStep(step, math.hypot(truncation, noise), value), value_size
        better = min((best, refined, last), key=lambda fitted: fitted.error)
        waited = waited + 1 if better is best else 0
        best = better
    return best


def _noise(change: float, predicted: float) -> float:
    """Return the part of a change that the predicted change of the truncation does not explain.

    A change far below the prediction says that the truncation did not follow its power law. Then all of the change may
    be noise.
    """
    return math.sqrt(max(0.0, change**2 - predicted**2)) if change >= predicted / 2 else change


def _change(space: VectorSpace, value: Vector, other: Vector, size: float) -> float:
    """Return ‖value − other‖/size. A change that is not finite counts as infinite."""
    if size == 0:
        return 0.0
    change = space.norm_of_sum((1.0, value), (-1.0, other)) / size
    return change if math.isfinite(change) else math.inf
