"""Whole vectors of a model whose weights are in bf16 and whose masters are in fp32, in one process.

A master is stored as the bf16 weight and a remainder of 16 bits. As integers,

    bits of the master = 65536 · bits of the weight + remainder,

where the remainder has a sign. So weights and masters take 4 bytes a parameter together, and no master loses a bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ofmu.vectors.base import FlatTensor, Vector, add_scaled_, flat_length, pieces
from ofmu.vectors.whole import ReplicatedSpace


@torch.no_grad()
def split_(masters: Tensor, weights: Tensor, remainders: Tensor) -> None:
    """Write fp32 masters as bf16 weights and remainders.

    A weight is the nearest bf16 number of its master. Of two that are equally near, it is the larger in magnitude:
    to take the even one, as PyTorch does, could need a remainder of 32768, which has no place in 16 bits.

    Args:
        masters: a flat tensor in fp32. A NaN may change its bits, and stays a NaN.
        weights: a flat tensor of the same length in bf16, which is overwritten.
        remainders: a flat tensor of the same length in int16, which is overwritten.
    """
    bits = masters.view(torch.int32)
    # The conversion keeps the lower 16 bits. With their first bit as the sign, they are the remainder.
    remainders.copy_(bits)
    weights.view(torch.int16).copy_((bits + 0x8000).bitwise_right_shift_(16))
    # Rounding may carry the bits of a NaN over to those of infinity or 0. On a GPU, a test would wait for the device.
    if masters.is_cuda or not math.isfinite(masters.sum()):
        weights.masked_fill_(masters.isnan(), math.nan)


@torch.no_grad()
def join(weights: Tensor, remainders: Tensor) -> Tensor:
    """Return the fp32 masters that :func:`split_` wrote, as a new tensor."""
    bits = weights.view(torch.int16).to(torch.int32)
    return bits.bitwise_left_shift_(16).add_(remainders).view(torch.float32)


def round_frozen(module: nn.Module) -> None:
    """Round the frozen weights of a module to bf16."""
    for parameter in module.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)


class MixedPrecisionSpace(ReplicatedSpace):
    """The space of the fp32 masters of a module, whose weights the constructor rounds to bf16.

    Frozen weights are rounded too. Buffers keep their type, as under DeepSpeed: the frequencies of rotary positions
    would lose digits. Backward passes add gradients in bf16 to vectors in fp32, or in the type of gradients.

    Args:
        module: the model. Its trainable parameters are in fp32.
        gradients: the type of vectors of gradients: fp32 or bf16.

    Raises:
        ValueError: the module has no trainable parameter, or a trainable parameter is not in fp32.
    """

    def __init__(self, module: nn.Module, *, gradients: torch.dtype = torch.float32) -> None:
        self._gradients = gradients
        super().__init__(module, accumulates_in_place=True)
        round_frozen(module)

    def _store(self, parameters: list[nn.Parameter]) -> None:
        """Split the parameters. Each one's memory in fp32 is freed before the next one is split."""
        if parameters[0].dtype != torch.float32:
            raise ValueError(f"weights in bf16 need masters in fp32, and the parameters are in {parameters[0].dtype}")
        length, device = flat_length(parameters), parameters[0].device
        self._weights = torch.empty(length, dtype=torch.bfloat16, device=device)
        self._remainders = torch.empty(length, dtype=torch.int16, device=device)
        views = zip(parameters, self._views(self._weights), self._views(self._remainders), strict=True)
        for parameter, weights, remainders in views:
            values = parameter.data.reshape(-1)
            for piece in pieces(values):
                split_(values[piece], weights.view(-1)[piece], remainders.view(-1)[piece])
            parameter.data = weights

    def masters(self) -> Vector:
        """Return a copy of the masters, which takes the memory of a vector."""
        return self.snapshot()

    def layout(self) -> list[FlatTensor]:
        """Return one flat tensor in fp32."""
        return [FlatTensor(len(self._weights), torch.float32, self._weights.device)]

    def read_parameters(self, index: int, piece: slice) -> Tensor:
        """Return a copy of a piece of the masters."""
        return join(self._weights[piece], self._remainders[piece])

    def write_parameters(self, index: int, piece: slice, values: Tensor) -> None:
        """Store a piece of the masters, and round it to the weights."""
        split_(values.to(self._weights.device, torch.float32), self._weights[piece], self._remainders[piece])

    @torch.no_grad()
    def add_to_parameters(self, vector: Vector, scale: float) -> None:
        """Add ``scale · vector`` to the masters."""
        for index, piece in self.parameter_pieces():
            values = self.read_parameters(index, piece)
            add_scaled_(values, vector[index][piece], scale)
            self.write_parameters(index, piece, values)

    def parameter_norm(self) -> float:
        """Return the norm of the masters, which are never in memory as a whole."""
        return math.hypot(*(self.norm([self.read_parameters(*place)]) for place in self.parameter_pieces()))

    def snapshot(self) -> Vector:
        """Return a copy of the masters."""
        return [self._masters(0, len(self._weights))]

    def gather_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield copies of the masters by parameter name. One of them at a time is in memory."""
        for segment, shape in zip(self.segments(), self.shapes().values(), strict=True):
            # No variable here keeps a parameter alive while the next one is formed.
            yield segment.parameter, self._masters(segment.offset, segment.length).view(shape)

    def _masters(self, start: int, length: int) -> Tensor:
        """Return a copy of consecutive masters."""
        result = torch.empty(length, dtype=torch.float32, device=self._weights.device)
        for piece in pieces(result):
            result[piece] = self.read_parameters(0, slice(start + piece.start, start + piece.stop))
        return result

    def gradient_zeros(self) -> Vector:
        """Return a new zero vector in the type of gradients."""
        return [torch.zeros_like(self._weights, dtype=self._gradients)]

    def sync_model(self) -> None:
        """Do nothing, since the weights are a part of the masters."""
