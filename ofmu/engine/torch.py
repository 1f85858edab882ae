"""The engine of one process, on plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ofmu.engine.base import Engine
from ofmu.engine.cost import CostTracker
from ofmu.vectors.whole import ReplicatedSpace


class TorchEngine(Engine):
    """One process without DeepSpeed, in any dtype. The tests of the other engines compare with this engine."""

    def __init__(self, model: nn.Module, tracker: CostTracker, micro_batch_size: int | None = None) -> None:
        super().__init__(micro_batch_size, tracker)
        self.model = model
        self.space = ReplicatedSpace(model, accumulates_in_place=True)
        self.device = next(model.parameters()).device

    def _forward(self) -> Callable[..., Any]:
        return self.model

    def _backward(self, scalar: Tensor, *, last: bool) -> None:
        scalar.backward()  # type: ignore[no-untyped-call]
