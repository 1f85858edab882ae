"""The engine of one process, on plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ofmu.engine.base import Engine
from ofmu.engine.cost import CostTracker
from ofmu.vectors.mixed import MixedPrecisionSpace
from ofmu.vectors.whole import ReplicatedSpace


class TorchEngine(Engine):
    """One process without DeepSpeed. The tests of the other engines compare with this engine.

    Args:
        model: the model.
        tracker: counts passes.
        micro_batch_size: rows of a forward pass. None: all rows at once.
        weights: the type to which the weights are rounded, beside masters in the model's own type. None: the weights
            are the masters.
    """

    def __init__(
        self,
        model: nn.Module,
        tracker: CostTracker,
        micro_batch_size: int | None = None,
        *,
        weights: torch.dtype | None = None,
    ) -> None:
        super().__init__(micro_batch_size, tracker)
        self.model = model
        if weights is None:
            self.space = ReplicatedSpace(model, accumulates_in_place=True)
        else:
            self.space = MixedPrecisionSpace(model, weights)
        self.device = next(model.parameters()).device

    def _forward(self) -> Callable[..., Any]:
        return self.model

    def _backward(self, scalar: Tensor, *, last: bool) -> None:
        scalar.backward()  # type: ignore[no-untyped-call]
