"""The frozen target, with which many losses compare the current model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from torch import Tensor

from ofmu.engine.base import Engine, RowFunction
from ofmu.losses import Loss

RowT = TypeVar("RowT")

KEPT_VECTORS = 1
"""Vectors of a :class:`FrozenTarget`: θ_0."""
VECTORS_IN_OUTPUTS = 1
"""Vectors that :meth:`FrozenTarget.outputs` holds besides θ_0: the current parameters."""


class FrozenTarget(Generic[RowT]):
    """The target: the engine's model at θ_0, the parameters at the construction of this object.

    For each pass, θ_0 is written to the engine, and the current parameters are restored afterwards, bit for bit. This
    costs the memory of one shard at any ZeRO stage. A second model would cost the memory of a whole model on each rank.

    Args:
        engine: the engine at θ_0.
        loss: gives the number of tokens of a row.
    """

    def __init__(self, engine: Engine, loss: Loss[RowT]) -> None:
        self._engine, self._loss = engine, loss
        self._origin = engine.space.snapshot()

    def outputs(self, compute: RowFunction[RowT], rows: Sequence[RowT]) -> dict[int, Tensor]:
        """Return ``compute`` at θ_0 for this rank's rows of the global minibatch, by ``id(row)``; collective."""
        space = self._engine.space
        with space.preserving_parameters():
            space.restore(self._origin)
            return self._engine.outputs(compute, rows, sum(self._loss.tokens(row) for row in rows))
