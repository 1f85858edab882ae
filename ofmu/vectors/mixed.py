"""Whole vectors of a model whose weights are in bf16 and whose masters are in fp32, in one process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ofmu.vectors.base import pieces
from ofmu.vectors.whole import ReplicatedSpace


class MixedPrecisionSpace(ReplicatedSpace):
    """The space of the fp32 masters of a module, whose weights the constructor rounds to another type.

    Frozen weights are rounded too. Buffers keep their type, as under DeepSpeed: the frequencies of rotary positions
    would lose digits. Backward passes add gradients in the type of the weights to vectors in fp32.

    Args:
        module: the model, in fp32.
        dtype: the type of the weights.

    Raises:
        ValueError: the module has no trainable parameter, or trainable parameters of several dtypes.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__(module, accumulates_in_place=True)
        self._weights: Tensor = self._flat.to(dtype)
        for (_, parameter), view in zip(self._named, self._views(self._weights), strict=True):
            parameter.data = view
        for parameter in module.parameters():
            if not parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)

    @torch.no_grad()
    def sync_model(self) -> None:
        """Round the masters to the weights."""
        for piece in pieces(self._flat):
            self._weights[piece].copy_(self._flat[piece])
