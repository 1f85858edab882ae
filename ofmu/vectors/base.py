"""Vectors in parameter space, held where the parameters live: whole, or one shard per rank.

A vector is a list of flat tensors that matches :meth:`VectorSpace.masters` in number, length, dtype and device.
Padding that a layout needs is zero in every vector, so inner products ignore it.
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
"""Products are summed in the vector's own precision within a chunk, and in float64 over the chunks."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of one parameter's flattened elements that this rank holds in one of its flat tensors."""

    parameter: str
    start: int
    """First element, counted in the flattened parameter."""
    length: int
    tensor: int
    """Which flat tensor of the vector."""
    offset: int
    """First element, counted in that flat tensor."""


class VectorSpace(ABC):
    """Linear algebra on gradients and parameters, without ever gathering them.

    Implementations differ in where the numbers live; the algebra below is written once, on local flat tensors.
    All methods are collective: every rank calls them in the same order.
    """

    replicated: bool
    """True where every rank holds the whole vector, so that sums over ranks would count twice."""

    @abstractmethod
    def masters(self) -> Vector:
        """Return the live flat tensors of the (fp32 master) parameters: no copy."""

    @abstractmethod
    def sync_model(self) -> None:
        """Make the model's forward pass see what :meth:`masters` now holds."""

    @abstractmethod
    def clear_gradient(self) -> None:
        """Forget the gradients of the last backward pass."""

    @abstractmethod
    def add_gradient(self, into: Vector, scale: float) -> None:
        """Add ``scale`` times the averaged gradient of the last backward pass to ``into``."""

    @abstractmethod
    def segments(self) -> list[Segment]:
        """Return which parameter elements the local flat tensors hold, padding left out."""

    @abstractmethod
    def gather(self, vector: Vector) -> dict[str, Tensor]:
        """Return the vector in full on every rank, by parameter name and in the parameters' shapes."""

    def zeros(self) -> Vector:
        """Return a new zero vector."""
        return [torch.zeros_like(master) for master in self.masters()]

    def snapshot(self) -> Vector:
        """Return a copy of the parameters, by which :meth:`restore` puts them back bit for bit."""
        return [master.detach().clone() for master in self.masters()]

    @torch.no_grad()
    def restore(self, snapshot: Vector) -> None:
        """Set the parameters to ``snapshot`` exactly."""
        for master, saved in zip(self.masters(), snapshot, strict=True):
            master.copy_(saved)
        self.sync_model()

    @torch.no_grad()
    def set_offset(self, origin: Vector, direction: Vector, scale: float) -> None:
        """Set the parameters to ``origin + scale · direction``."""
        for master, base, step in zip(self.masters(), origin, direction, strict=True):
            torch.add(base, step, alpha=scale, out=master.detach())
        self.sync_model()

    @contextmanager
    def preserving_parameters(self) -> Iterator[Vector]:
        """Yield a snapshot of the parameters and put it back on leaving, whatever happened in between."""
        origin = self.snapshot()
        try:
            yield origin
        finally:
            self.restore(origin)

    @torch.no_grad()
    def dots(self, *pairs: tuple[Vector, Vector]) -> list[float]:
        """Return the global inner product of each pair, with one exchange for all of them."""
        sums = torch.zeros(len(pairs), dtype=torch.float64)
        for index, (left, right) in enumerate(pairs):
            sums[index] = sum(_dot(x, y) for x, y in zip(left, right, strict=True))
        if not self.replicated:
            sums = self.all_reduce(sums)
        return [float(value) for value in sums]

    def norm(self, vector: Vector) -> float:
        """Return the global Euclidean norm."""
        return math.sqrt(self.dots((vector, vector))[0])

    @torch.no_grad()
    def combine(self, *terms: tuple[float, Vector]) -> Vector:
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
        """Return the sum over ranks of a small float64 CPU tensor; one process returns it unchanged."""
        return sum_over_ranks(values)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of ``values`` over the process group, where there is one."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return values
    on_gpu = torch.distributed.get_backend() == "nccl"
    exchanged = values.to("cuda") if on_gpu else values.clone()
    torch.distributed.all_reduce(exchanged)
    return exchanged.to(values.device)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    whole = left.numel() // _CHUNK * _CHUNK
    total: Tensor = torch.linalg.vecdot(left[whole:], right[whole:]).to(torch.float64)
    if whole:
        partial = torch.linalg.vecdot(left[:whole].view(-1, _CHUNK), right[:whole].view(-1, _CHUNK))
        total = total + partial.sum(dtype=torch.float64)
    return total.cpu()


def flat_length(tensors: Sequence[Tensor]) -> int:
    """Return the number of elements of all tensors together."""
    return sum(tensor.numel() for tensor in tensors)
