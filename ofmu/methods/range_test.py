"""A range test of learning rates: how far a straight way up must lead before a loss has risen by so many nats.

One rate does not suit every model. A step of AdamW with rate 1e-3 is a small step for a model of half a million
weights, and destroys a model of 135 million. The loss itself is a measure that holds for both. So a rate can be stated
as a share of the length after which the loss of some rows has risen by a given number of nats.

The idea of trying rates in rising order is that of L. Smith, "Cyclical Learning Rates for Training Neural Networks"
(arXiv 1506.01186). Here the steps start at the same point, so the parameters are as before at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from ofmu.engine.base import Engine
from ofmu.errors import ConfigError
from ofmu.losses import RowwiseLoss
from ofmu.vectors.base import Displacement, Vector
from ofmu.vectors.optimizers import UpdateRule, first_step_

RowT = TypeVar("RowT")

FEWEST_PASSES, MOST_PASSES = 4, 28
"""Bounds of the forward passes of one test: the start, the search for a bracket, and its middle."""
_FACTOR = 4.0
_FIRST = 1e-4
"""The first length, as a share of ‖θ‖."""


def ascent_reach(engine: Engine, loss: RowwiseLoss[RowT], rows: Sequence[RowT], rule: UpdateRule, rise: float) -> float:
    """Return the rate with which one step up the gradient raises the mean loss of ``rows`` by ``rise``; collective.

    The test costs one gradient evaluation and at most ``MOST_PASSES`` forward passes. It holds two vectors. The
    parameters keep their bits.

    Args:
        engine: the engine at the point of departure.
        loss: the loss to raise. The mean is taken over rows.
        rows: a global minibatch.
        rule: the rule whose first step is taken.
        rise: nats, positive.

    Raises:
        ConfigError: no rate raises the loss by ``rise``, for instance since the gradient is 0.
        NonFiniteLossError: the loss at the point of departure is NaN or infinite.
    """
    space = engine.space
    _, direction = engine.gradient(loss, rows)
    first_step_(rule, direction, space.norm(direction))
    return reach_along(engine, loss, rows, direction, rise, "set method.inner_lr and method.outer_lr")


def reach_along(
    engine: Engine, loss: RowwiseLoss[RowT], rows: Sequence[RowT], direction: Vector, rise: float, fix: str
) -> float:
    """Return the multiple of ``direction`` that raises the mean loss of ``rows`` by ``rise``; collective.

    The test costs at most ``MOST_PASSES`` forward passes, and holds one vector. The parameters keep their bits.

    Args:
        engine: the engine at the point of departure.
        loss: the loss to raise. The mean is taken over rows.
        rows: a global minibatch.
        direction: the way.
        rise: nats, positive.
        fix: the end of the error's sentence.

    Raises:
        ConfigError: no multiple raises the loss by ``rise``, for instance since the direction is 0.
        NonFiniteLossError: the loss at the point of departure is NaN or infinite.
    """
    space = engine.space
    length = space.norm(direction)
    if not (length > 0 and math.isfinite(length)):
        raise _no_rate(rise, fix)
    start = mean_loss(engine, loss, rows)
    with space.preserving_parameters() as origin:

        def rise_at(rate: float) -> float:
            space.displace(origin, Displacement(rate, [(1.0, direction)]))
            value = mean_loss(engine, loss, rows) - start
            return value if math.isfinite(value) else math.inf

        reached = _first_reaching(rise_at, rise, _FIRST * space.norm(origin) / length)
    if reached is None:
        raise _no_rate(rise, fix)
    return reached


def _first_reaching(rise_at: Callable[[float], float], rise: float, rate: float) -> float | None:
    """Return the rate at which ``rise_at`` reaches ``rise``, between two tried rates by a power law, or None."""
    tried = {rate: rise_at(rate)}
    factor = _FACTOR if tried[rate] < rise else 1 / _FACTOR
    while (tried[rate] < rise) == (factor > 1):
        if len(tried) > MOST_PASSES - 3:
            return None
        rate *= factor
        tried[rate] = rise_at(rate)
    low = min(rate, rate / factor)
    middle = low * math.sqrt(_FACTOR)
    tried[middle] = rise_at(middle)
    below, above = (low, middle) if tried[middle] >= rise else (middle, low * _FACTOR)
    return _between(below, tried[below], above, tried[above], rise)


def _between(below: float, low: float, above: float, high: float, rise: float) -> float:
    """Return where a power law, or a line if ``low`` is not positive, through two points has the value ``rise``."""
    if not math.isfinite(high):
        return below
    if low <= 0:
        return below + (above - below) * (rise - low) / (high - low)
    share = math.log(rise / low) / math.log(high / low)
    return below * math.exp(share * math.log(above / below))


def mean_loss(engine: Engine, loss: RowwiseLoss[RowT], rows: Sequence[RowT]) -> float:
    """Return the mean over rows of a loss, by a forward pass; collective."""
    tokens = sum(loss.tokens(row) for row in rows)
    values = engine.row_values(lambda module, batch, device: [*loss.row_means(module, batch, device)], rows, tokens)
    return sum(values) / len(values)


def spread(rows: Sequence[RowT], count: int) -> list[RowT]:
    """Return ``count`` rows at equal distances over ``rows``, or all rows if there are no more."""
    return [rows[index * len(rows) // count] for index in range(count)] if len(rows) > count else list(rows)


def _no_rate(rise: float, fix: str) -> ConfigError:
    return ConfigError(
        f"no learning rate raises the loss of the model by {rise:g} nats, so the rates cannot be found by a test: {fix}"
    )
