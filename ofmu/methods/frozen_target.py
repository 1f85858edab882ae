"""The frozen start model that many losses compare with, held as one sharded vector and not as a second model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ofmu.engine.base import Engine
from ofmu.losses import Loss

RowT = TypeVar("RowT")

Compute = Callable[[Callable[..., Any], Sequence[RowT], torch.device], Sequence[Tensor]]
"""From module, rows and device to one tensor per row."""


class FrozenTarget(Generic[RowT]):
    """The engine's model at θ_0, the parameters it has when this object is made.

    Its outputs are computed by putting θ_0 into the engine for one forward pass and the current parameters back,
    bit for bit: one shard of memory at any ZeRO stage, where a second model would need all of it on every rank.
    """

    def __init__(self, engine: Engine, loss: Loss[RowT]) -> None:
        self._engine, self._loss = engine, loss
        self._origin = engine.space.snapshot()

    def outputs(self, compute: Compute[RowT], rows: Sequence[RowT]) -> dict[int, Tensor]:
        """Return ``compute`` at θ_0 for this rank's rows of the global minibatch, by ``id(row)``; collective."""
        space = self._engine.space
        with space.preserving_parameters():
            space.restore(self._origin)
            return self._engine.outputs(compute, rows, self._tokens(rows))

    def row_values(self, compute: Compute[RowT], rows: Sequence[RowT]) -> dict[int, float]:
        """Return one number per row at θ_0, by ``id(row)``, on every rank; ``compute`` gives scalars; collective."""
        space = self._engine.space
        with space.preserving_parameters():
            space.restore(self._origin)
            values = self._engine.row_values(compute, rows, self._tokens(rows))
        return dict(zip(map(id, rows), values, strict=True))

    def _tokens(self, rows: Sequence[RowT]) -> int:
        return sum(self._loss.tokens(row) for row in rows)
