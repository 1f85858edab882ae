"""SalUn's saliency mask, around any method: only the weights that matter most to the forget loss may move."""

from __future__ import annotations

import math
from typing import Any

import torch

from ofmu.engine.base import Engine
from ofmu.losses import Loss
from ofmu.methods.base import Context
from ofmu.vectors.base import Vector, VectorSpace
from ofmu.vectors.masked import MaskedSpace


def apply_saliency_mask(context: Context[Any], fraction: float, batch_size: int) -> None:
    """Restrict the engine to the ``fraction`` of weights with the largest |∇L_f(θ_0)|; collective.

    Fan et al., SalUn, arXiv 2310.12508, section 4, with the threshold at a quantile as in its experiments;
    the gradient is that of the mean loss of all forget rows. Weights outside the mask keep θ_0 bit for bit.
    """
    engine, task = context.engine, context.task
    gradient, _ = mean_gradient(engine, task.loss, task.forget_rows, batch_size)
    engine.space = MaskedSpace(engine.space, saliency_mask(engine.space, gradient, fraction))


def mean_gradient(engine: Engine, loss: Loss[Any], rows: Any, batch_size: int) -> tuple[Vector, float]:
    """Return gradient and value of ``loss`` over all of ``rows``, taken ``batch_size`` at a time; collective."""
    total, value = engine.space.zeros(), 0.0
    whole = sum(loss.size(row) for row in rows)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        share = sum(loss.size(row) for row in batch) / whole
        found, _ = engine.gradient(loss, batch, into=total, scale=share)
        value += share * found
    return total, value


@torch.no_grad()
def saliency_mask(space: VectorSpace, gradient: Vector, fraction: float) -> Vector:
    """Return, as booleans, which weights are among the ``fraction`` with the largest |gradient|; collective.

    Ties at the threshold all count, and a weight without gradient never does, nor does padding.
    """
    magnitudes = [part.abs() for part in gradient]
    wanted = math.ceil(fraction * _over_ranks(space, sum(segment.length for segment in space.segments())))
    # non-negative floats order as their bits do, so the threshold is found exactly, without sorting over ranks
    bits = [part.view(torch.int32 if part.element_size() == 4 else torch.int64) for part in magnitudes]
    low, high = 1, 2 ** (8 * magnitudes[0].element_size() - 1) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if _over_ranks(space, sum(int((part >= middle).sum()) for part in bits)) >= wanted:
            low = middle
        else:
            high = middle - 1
    return [part >= low for part in bits]


def _over_ranks(space: VectorSpace, count: int) -> int:
    if space.replicated:
        return count
    return int(space.all_reduce(torch.tensor([count], dtype=torch.float64)))
