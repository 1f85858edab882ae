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
        rounded: True: the weights are rounded to bf16, and the masters stay in fp32. False: the weights are the
            masters.
        gradients: the type of vectors of gradients beside rounded weights: fp32 or bf16.
    """

    def __init__(
        self,
        model: nn.Module,
        tracker: CostTracker,
        micro_batch_size: int | None = None,
        *,
        rounded: bool = False,
        gradients: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(micro_batch_size, tracker)
        self.model = model
        if rounded:
            self.space = MixedPrecisionSpace(model, gradients=gradients)
        else:
            self.space = ReplicatedSpace(model, accumulates_in_place=True)
        self.device = next(model.parameters()).device

    def _forward(self) -> Callable[..., Any]:
        return self.model

    def _backward(self, scalar: Tensor, *, last: bool) -> None:
        scalar.backward()  # type: ignore[no-untyped-call]
