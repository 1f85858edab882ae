"""The moments of an optimizer, in fp32 or in 8 bits, read and written piece by piece."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from ofmu.vectors.base import FlatTensor, Vector, pieces

BLOCK = 256
"""Values that share a scale in 8 bits. Pieces of a vector begin at multiples of this number."""
BYTES_PER_VALUE = 1 + 4 / BLOCK
"""Bytes of a value in 8 bits, with its share of the scale."""
_DECADES = 7


class Moment(Protocol):
    """A vector that an optimizer keeps from step to step."""

    def read(self, index: int, piece: slice) -> Tensor:
        """Return a piece of the flat tensor ``index``, in the parameters' type. :meth:`write` stores its changes."""

    def write(self, index: int, piece: slice, values: Tensor) -> None:
        """Store a piece of the flat tensor ``index``."""

    def vector(self) -> Vector:
        """Return the whole vector in the parameters' type."""


class ExactMoment:
    """A moment in the parameters' type, which is fp32."""

    def __init__(self, vector: Vector) -> None:
        self._vector = vector

    def read(self, index: int, piece: slice) -> Tensor:
        """Return the piece itself, so that a change needs no :meth:`write`."""
        return self._vector[index][piece]

    def write(self, index: int, piece: slice, values: Tensor) -> None:
        """Store nothing: ``values`` is the piece itself."""

    def vector(self) -> Vector:
        """Return the live tensors, no copies."""
        return self._vector


class QuantizedMoment:
    """A moment in 8 bits: one byte per value, and one fp32 scale, the largest magnitude, per block of 256 values.

    A byte names one of 256 levels of :func:`dynamic_levels`, the nearest. Storing what was read gives the same bytes
    again, so a checkpoint in fp32 continues bit for bit. The 8-bit kernels of bitsandbytes 0.50 do not have this
    property on a CPU.

    Source: Dettmers et al., arXiv 2110.02861. The levels of the second moment have no zero, as in Li et al., arXiv
    2309.01507: a second moment that is rounded to zero would make the next step of AdamW many times too long.

    The first values are zeros.

    Args:
        like: the lengths, devices and type of the moment's flat tensors.
        signed: whether values may be negative.
    """

    def __init__(self, like: Sequence[FlatTensor], *, signed: bool) -> None:
        self._dtype = like[0].dtype
        levels = {part.device: _Levels(dynamic_levels(signed=signed), part.device) for part in like}
        self._levels = [levels[part.device] for part in like]
        self._bytes = [torch.zeros(part.length, dtype=torch.uint8, device=part.device) for part in like]
        self._scales = [torch.zeros(math.ceil(part.length / BLOCK), device=part.device) for part in like]

    def read(self, index: int, piece: slice) -> Tensor:
        """Return a copy of the piece."""
        values = self._levels[index].values.index_select(0, self._bytes[index][piece].int())
        scales = self._scales[index][piece.start // BLOCK : math.ceil(piece.stop / BLOCK)]
        return _blocks(values).mul(scales[:, None]).flatten()[: len(values)].to(self._dtype)

    def write(self, index: int, piece: slice, values: Tensor) -> None:
        """Store the piece. It begins at a multiple of 256, and ends at one or at the end of the tensor."""
        blocks = _blocks(values.float())
        scales = blocks.abs().amax(dim=1)
        self._scales[index][piece.start // BLOCK : math.ceil(piece.stop / BLOCK)] = scales
        # A block of zeros has the scale 0, with which any byte reads as 0.
        relative = blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        self._bytes[index][piece] = self._levels[index].nearest(relative.flatten()[: len(values)])

    def vector(self) -> Vector:
        """Return a copy in host memory."""
        result = [torch.empty(len(part), dtype=self._dtype) for part in self._bytes]
        for index, part in enumerate(result):
            for piece in pieces(self._bytes[index]):
                part[piece] = self.read(index, piece).cpu()
        return result

    def fill(self, vector: Vector) -> None:
        """Store a whole vector."""
        for index, part in enumerate(vector):
            for piece in pieces(part):
                self.write(index, piece, part[piece])


class _Levels:
    """Finds the nearest of 256 levels ten times faster than a binary search.

    The upper 16 bits of a number leave two levels to choose from, since the levels lie further apart than such numbers.
    """

    def __init__(self, values: Tensor, device: torch.device) -> None:
        boundaries = (values[1:] + values[:-1]) / 2
        upper = torch.arange(2**16, dtype=torch.int64)
        # The smallest number with these upper bits: a larger pattern is a smaller number where the sign bit is set.
        patterns = torch.where(upper < 2**15, upper << 16, (upper << 16) + 2**16 - 1 - 2**32)
        smallest = patterns.to(torch.int32).view(torch.float32)
        self.values = values.to(device)
        self._first = torch.bucketize(smallest, boundaries).to(torch.uint8).to(device)
        self._boundaries = torch.cat((boundaries, torch.tensor([torch.inf]))).to(device)

    def nearest(self, numbers: Tensor) -> Tensor:
        """Return the index of the level that is nearest to each number, in uint8."""
        upper = (numbers.view(torch.int32) >> 16) & 0xFFFF
        first = self._first.index_select(0, upper)
        return first + (numbers > self._boundaries.index_select(0, first.int()))


def dynamic_levels(*, signed: bool) -> Tensor:
    """Return the 256 levels of the dynamic map in ascending order, shape (256,), within [-1, 1] or (0, 1].

    Each of seven decades below 1 has twice as many levels as the decade below. Within a decade the levels are evenly
    spaced. Source: Dettmers et al., arXiv 2110.02861, section 1.3.

    Args:
        signed: True: the levels are symmetric and contain 0. False: all levels are positive.
    """
    positive: list[float] = []
    for decade in range(_DECADES):
        edges = torch.linspace(0.1, 1.0, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float64)
        positive += ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - _DECADES + 1)).tolist()
    if not signed:
        return torch.tensor([10.0**-_DECADES, *positive, 1.0])
    negative = [-level for level in reversed(positive)]
    # The largest magnitude of a block must have a level on both sides.
    return torch.tensor([-1.0, *negative[1:], 0.0, *positive, 1.0])


def _blocks(values: Tensor) -> Tensor:
    """Return a flat tensor as blocks, shape (blocks, 256). The last block is filled with zeros."""
    return pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
