"""The saliency mask of SalUn, for any method: only the weights with the largest forget gradient may change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from ofmu.engine.base import Engine
from ofmu.losses import Loss
from ofmu.methods.base import Context
from ofmu.vectors.base import Vector, VectorSpace
from ofmu.vectors.masked import MaskedSpace

RowT = TypeVar("RowT")


def apply_saliency_mask(context: Context[Any], fraction: float, batch_size: int) -> None:
    """Restrict the engine to the ``fraction`` of weights with the largest |∇L_f(θ_0)|; collective.

    L_f is the mean loss of all forget rows. The other weights keep θ_0 bit for bit. The mask is that of SalUn (Fan et
    al., arXiv 2310.12508, section 4), with the threshold at a quantile as in the experiments of that paper.
    """
    engine, task = context.engine, context.task
    gradient, _ = mean_gradient(engine, task.loss, task.forget_rows, batch_size)
    engine.space = MaskedSpace(engine.space, saliency_mask(engine.space, gradient, fraction))


def mean_gradient(engine: Engine, loss: Loss[RowT], rows: Sequence[RowT], batch_size: int) -> tuple[Vector, float]:
    """Return the gradient and the value of the mean loss of all ``rows``, in batches of ``batch_size``; collective."""
    gradient, value = engine.space.zeros(), 0.0
    size = sum(loss.size(row) for row in rows)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        share = sum(loss.size(row) for row in batch) / size
        batch_value, _ = engine.gradient(loss, batch, into=gradient, scale=share)
        value += share * batch_value
    return gradient, value


@torch.no_grad()
def saliency_mask(space: VectorSpace, gradient: Vector, fraction: float) -> Vector:
    """Return which weights are among the ``fraction`` with the largest |gradient|, as booleans; collective.

    If several weights are equal to the threshold, the mask includes all of them. The mask never includes a weight
    without gradient, nor padding.
    """
    magnitudes = [part.abs() for part in gradient]
    count = math.ceil(fraction * _sum_over_ranks(space, sum(segment.length for segment in space.segments())))
    # Non-negative floats have the order of their bits. So bisection finds the exact threshold without a global sort.
    bits = [part.view(torch.int32 if part.element_size() == 4 else torch.int64) for part in magnitudes]
    low, high = 1, 2 ** (8 * magnitudes[0].element_size() - 1) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if _sum_over_ranks(space, sum(int((part >= middle).sum()) for part in bits)) >= count:
            low = middle
        else:
            high = middle - 1
    return [part >= low for part in bits]


def _sum_over_ranks(space: VectorSpace, count: int) -> int:
    if space.replicated:
        return count
    return int(space.all_reduce(torch.tensor([count], dtype=torch.float64)))
