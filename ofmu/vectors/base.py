"""Vectors in parameter space, stored where the parameters are: in full, or one shard per rank.

A vector is a list of flat tensors that matches :meth:`VectorSpace.masters` in number, length, dtype and device.
The padding of a layout is zero in every vector, so padding changes no inner product.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Vector: TypeAlias = list[Tensor]

_CHUNK = 4096
"""Elements per chunk. Products are summed in the vector's precision within a chunk, and in float64 over chunks."""
_PIECE = 256 * _CHUNK
"""Elements of a sum that are formed at a time. A sum that is only read once is never in memory as a whole."""
_PIECE_ON_GPU = 4096 * _CHUNK
"""The same on a GPU. Smaller pieces take less time than the start of their kernels."""

Term: TypeAlias = tuple[float, Vector]
"""A coefficient and a vector. A sequence of terms stands for the sum Σ coefficient · vector."""


@dataclass(frozen=True, slots=True)
class Displacement:
    """A displacement ``scale`` · Σ coefficient · vector of the parameters. The sum is never formed as a whole."""

    scale: float
    terms: Sequence[Term]


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive elements of one flattened parameter that this rank holds in one of the flat tensors."""

    parameter: str
    """Name of the parameter."""
    start: int
    """Index of the first element in the flattened parameter."""
    length: int
    """Number of elements."""
    tensor: int
    """Index of the flat tensor in the vector."""
    offset: int
    """Index of the first element in the flat tensor."""


class VectorSpace(ABC):
    """Linear algebra on gradients and parameters, without gathering them.

    Subclasses differ in where the elements are stored. This class has the algebra, on local flat tensors.
    All methods are collective: every rank calls the same methods in the same order.
    """

    replicated: bool
    """Whether every rank holds the whole vector. Sums over ranks would then count each element several times."""
    accumulates_in_place: bool = False
    """Whether a backward pass can add its gradient to a vector directly: see :meth:`accumulating_in`."""

    @abstractmethod
    def masters(self) -> Vector:
        """Return the flat tensors of the parameters (the fp32 masters). These are the live tensors, no copies."""

    @abstractmethod
    def sync_model(self) -> None:
        """Copy :meth:`masters` to the weights that the model's forward pass uses."""

    @abstractmethod
    def clear_gradient(self) -> None:
        """Discard the gradients of the last backward pass."""

    @abstractmethod
    def add_gradient(self, into: Vector, scale: float) -> None:
        """Add ``scale`` times the averaged gradient of the last backward pass to ``into``."""

    @contextmanager
    def accumulating_in(self, target: Vector, scale: float, *, first_order: bool = True) -> Iterator[None]:
        """Let the backward passes inside the block add ``scale`` times their gradients to ``target``.

        A parameter's gradient is freed at once, so no whole gradient is in memory beside ``target``. Only for a space
        that :attr:`accumulates_in_place`.

        Args:
            target: the vector.
            scale: the factor.
            first_order: whether nothing inside the block takes a second derivative or uses forward mode.
        """
        raise NotImplementedError
        yield

    @abstractmethod
    def segments(self) -> list[Segment]:
        """Return the segments of the parameters that the local flat tensors hold, without padding."""

    @abstractmethod
    def shapes(self) -> dict[str, torch.Size]:
        """Return the shape of every parameter, by name."""

    @abstractmethod
    def gather_each(self, vector: Vector) -> Iterator[tuple[str, Tensor]]:
        """Yield the whole vector on every rank, one parameter after the other, in the order of :meth:`shapes`.

        Each step is collective, and the parts of a partitioned vector exist only until the next step.
        """

    def gather(self, vector: Vector) -> dict[str, Tensor]:
        """Return the whole vector on every rank, by parameter name. The memory of every rank must fit it."""
        return dict(self.gather_each(vector))

    def zeros(self) -> Vector:
        """Return a new zero vector."""
        return [torch.zeros_like(master) for master in self.masters()]

    def snapshot(self) -> Vector:
        """Return a copy of the parameters, for :meth:`restore`."""
        return [master.detach().clone() for master in self.masters()]

    @torch.no_grad()
    def restore(self, snapshot: Vector) -> None:
        """Set the parameters to ``snapshot``, bit for bit."""
        for master, saved in zip(self.masters(), snapshot, strict=True):
            master.copy_(saved)
        self.sync_model()

    @torch.no_grad()
    def round_parameters(self, dtype: torch.dtype) -> None:
        """Round the parameters to the values of a type. The type of the masters stays."""
        if dtype == torch.float32:
            return
        for master in self.masters():
            for piece in pieces(master):
                master[piece].copy_(master[piece].to(dtype))
        self.sync_model()

    @torch.no_grad()
    def displace(self, origin: Vector, *displacements: Displacement) -> None:
        """Set the parameters to ``origin`` plus the displacements, which are added one after the other."""
        for index, (master, base) in enumerate(zip(self.masters(), origin, strict=True)):
            for piece in pieces(master):
                value = base[piece]
                for displacement in displacements:
                    value = torch.add(value, _sum(displacement.terms, index, piece), alpha=displacement.scale)
                master.detach()[piece].copy_(value)
        self.sync_model()

    @contextmanager
    def preserving_parameters(self) -> Iterator[Vector]:
        """Yield a snapshot of the parameters. Restore the snapshot at the end, also after an exception."""
        origin = self.snapshot()
        try:
            yield origin
        finally:
            self.restore(origin)

    @torch.no_grad()
    def dots(self, *pairs: tuple[Vector, Vector]) -> list[float]:
        """Return the global inner product of each pair. All pairs share one exchange between the ranks."""
        zero = torch.zeros((), dtype=torch.float64, device=pairs[0][0][0].device)
        products = [sum((_dot(x, y) for x, y in zip(*pair, strict=True)), start=zero) for pair in pairs]
        sums = torch.stack(products).cpu()
        if not self.replicated:
            sums = self.all_reduce(sums)
        return [float(value) for value in sums]

    def norm(self, vector: Vector) -> float:
        """Return the global Euclidean norm."""
        return math.sqrt(self.dots((vector, vector))[0])

    @torch.no_grad()
    def norm_of_sum(self, *terms: Term) -> float:
        """Return the norm of Σ coefficient · vector. The sum is never formed as a whole."""
        squares = torch.zeros(1, dtype=torch.float64, device=terms[0][1][0].device)
        for index, tensor in enumerate(terms[0][1]):
            for piece in pieces(tensor):
                part = _sum(terms, index, piece)
                squares += _dot(part, part)
        squares = squares.cpu()
        return math.sqrt(float(squares if self.replicated else self.all_reduce(squares)))

    @torch.no_grad()
    def combine(self, *terms: Term) -> Vector:
        """Return Σ coefficient · vector as a new vector."""
        (first, vector), *rest = terms
        result = [torch.mul(tensor, first) for tensor in vector]
        for coefficient, other in rest:
            self.add(result, other, coefficient)
        return result

    @torch.no_grad()
    def add(self, into: Vector, vector: Vector, scale: float) -> None:
        """Add ``scale · vector`` to ``into`` in place."""
        torch._foreach_add_(into, vector, alpha=scale)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum over ranks of a small float64 CPU tensor. One process returns the tensor unchanged."""
        return sum_over_ranks(values)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over the process group. Without a group, return ``values``."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return values
    on_gpu = torch.distributed.get_backend() == "nccl"
    exchanged = values.to("cuda") if on_gpu else values.clone()
    torch.distributed.all_reduce(exchanged)
    return exchanged.to(values.device)


def pieces(tensor: Tensor, parts: int = 1) -> Iterator[slice]:
    """Return slices that cover a flat tensor, of about a million elements each, and on a GPU of 16 million.

    Args:
        tensor: the tensor.
        parts: 1, 2, 4 or 8: slices of half, a quarter or an eighth of this length, where a piece needs many temporary
            tensors.
    """
    length = (_PIECE_ON_GPU if tensor.is_cuda else _PIECE) // parts
    for start in range(0, tensor.numel(), length):
        yield slice(start, min(start + length, tensor.numel()))


def _sum(terms: Sequence[Term], index: int, piece: slice) -> Tensor:
    """Return a piece of the flat tensor ``index`` of Σ coefficient · vector. A single vector is not copied."""
    (first, vector), *rest = terms
    if first == 1 and not rest:
        return vector[index][piece]
    result = torch.mul(vector[index][piece], first)
    for coefficient, other in rest:
        result.add_(other[index][piece], alpha=coefficient)
    return result


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product in float64, where the tensors are: a copy to the host would wait for the device.

    The pieces keep ``vecdot`` from forming all products at once.
    """
    whole = left.numel() // _CHUNK * _CHUNK
    total: Tensor = torch.linalg.vecdot(left[whole:], right[whole:]).to(torch.float64)
    if whole:
        partial = [
            torch.linalg.vecdot(left[piece].view(-1, _CHUNK), right[piece].view(-1, _CHUNK))
            for piece in pieces(left[:whole])
        ]
        total = total + torch.cat(partial).sum(dtype=torch.float64)
    return total


def flat_length(tensors: Sequence[Tensor]) -> int:
    """Return the total number of elements."""
    return sum(tensor.numel() for tensor in tensors)
