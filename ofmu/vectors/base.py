"""Vectors in parameter space, stored where the parameters are: in full, or one shard per rank.

A vector is a list of flat tensors that matches :meth:`VectorSpace.layout` in number, length, dtype and device. A vector
of gradients may have a shorter dtype: see :meth:`VectorSpace.gradient_zeros`. The padding of a layout is zero in every
vector, so padding changes no inner product.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeAlias

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


def by_parameter(segments: Iterable[Segment]) -> dict[str, list[Segment]]:
    """Return the segments by the name of their parameter. A parameter without segments has an empty list."""
    found = defaultdict[str, list[Segment]](list)
    for segment in segments:
        found[segment.parameter].append(segment)
    return found


@dataclass(frozen=True, slots=True)
class FlatTensor:
    """A flat tensor of a vector, without its values."""

    length: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def like(cls, tensor: Tensor) -> Self:
        """Return the description of a flat tensor."""
        return cls(tensor.numel(), tensor.dtype, tensor.device)


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
        """Return the flat tensors of the parameters (the fp32 masters), to read them.

        These are the live tensors where the space stores the masters as such. A space that stores them in another form
        returns a copy, which takes the memory of a vector. So code that works on any space reads and writes pieces, by
        :meth:`read_parameters` and :meth:`write_parameters`.
        """

    @abstractmethod
    def sync_model(self) -> None:
        """Let the weights that the model's forward pass uses be those of the parameters."""

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

    def clear_frozen(self, vector: Vector) -> None:
        """Set the elements of ``vector`` to 0 whose weights may not change. In most spaces, every weight may change.

        What adds to a vector by another way than :meth:`add_gradient` and :meth:`accumulating_in` must call this
        afterwards.
        """
        return None

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

    def gather_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the whole parameters on every rank, one after the other, as :meth:`gather_each` does; collective."""
        return self.gather_each(self.masters())

    def layout(self) -> list[FlatTensor]:
        """Return what the flat tensors of a vector are like."""
        return [FlatTensor.like(master) for master in self.masters()]

    def parameter_pieces(self, parts: int = 1) -> Iterator[tuple[int, slice]]:
        """Yield each index of a flat tensor with the slices that :func:`pieces` returns for it."""
        for index, flat in enumerate(self.layout()):
            for piece in pieces(flat, parts):
                yield index, piece

    def read_parameters(self, index: int, piece: slice) -> Tensor:
        """Return a piece of the flat tensor ``index`` of the parameters, in fp32.

        The piece may be changed in place. :meth:`write_parameters` then stores it; without it, the piece must not be
        changed, since it may be the live tensor.
        """
        return self._master(index)[piece]

    def write_parameters(self, index: int, piece: slice, values: Tensor) -> None:
        """Store a piece of the flat tensor ``index`` of the parameters. :meth:`sync_model` must follow."""
        target = self._master(index)[piece]
        # What was read and changed in place is stored already.
        if target.data_ptr() != values.data_ptr():
            target.copy_(values)

    def _master(self, index: int) -> Tensor:
        """Return a live flat tensor, of a space that stores the masters as such."""
        return self.masters()[index].detach()

    def add_to_parameters(self, vector: Vector, scale: float) -> None:
        """Add ``scale · vector`` to the parameters. :meth:`sync_model` must follow."""
        self.add(self.masters(), vector, scale)

    def parameter_norm(self) -> float:
        """Return the global Euclidean norm of the parameters."""
        return self.norm(self.masters())

    def zeros(self) -> Vector:
        """Return a new zero vector in the type of the parameters."""
        return [torch.zeros(flat.length, dtype=flat.dtype, device=flat.device) for flat in self.layout()]

    def gradient_zeros(self) -> Vector:
        """Return a new zero vector for a gradient. A space may store gradients in a shorter type than parameters."""
        return self.zeros()

    def snapshot(self) -> Vector:
        """Return a copy of the parameters, for :meth:`restore`."""
        return [master.detach().clone() for master in self.masters()]

    @torch.no_grad()
    def restore(self, snapshot: Vector) -> None:
        """Set the parameters to ``snapshot``, bit for bit."""
        for index, piece in self.parameter_pieces():
            self.write_parameters(index, piece, snapshot[index][piece])
        self.sync_model()

    @torch.no_grad()
    def round_parameters(self, dtype: torch.dtype) -> None:
        """Round the parameters to the values of a type. The type of the masters stays."""
        if dtype == torch.float32:
            return
        for index, piece in self.parameter_pieces():
            self.write_parameters(index, piece, self.read_parameters(index, piece).to(dtype))
        self.sync_model()

    @torch.no_grad()
    def displace(self, origin: Vector, *displacements: Displacement) -> None:
        """Set the parameters to ``origin`` plus the displacements, which are added one after the other."""
        for index, piece in self.parameter_pieces():
            value = origin[index][piece]
            for displacement in displacements:
                value = torch.add(value, _sum(displacement.terms, index, piece), alpha=displacement.scale)
            self.write_parameters(index, piece, value)
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
        """Return Σ coefficient · vector as a new vector, in the type of the first vector."""
        (first, vector), *rest = terms
        if any(is_short(tensor) for tensor in vector):
            # A sum that is formed in bf16 would be rounded after each term.
            result = [torch.empty_like(tensor) for tensor in vector]
            for index, tensor in enumerate(result):
                for piece in pieces(tensor):
                    tensor[piece].copy_(_sum(terms, index, piece))
            return result
        result = [torch.mul(tensor, first) for tensor in vector]
        for coefficient, other in rest:
            self.add(result, other, coefficient)
        return result

    @torch.no_grad()
    def transform(self, vectors: Sequence[Vector], rows: Sequence[Sequence[float]]) -> None:
        """Replace each vector by a sum of the present ones, in place.

        Args:
            vectors: the vectors, which share no memory.
            rows: for each vector, at least two coefficients, of the first vectors in their order.
        """
        for index, tensor in enumerate(vectors[0]):
            for piece in pieces(tensor, 4):
                sums = [_sum(list(zip(row, vectors, strict=False)), index, piece) for row in rows]
                for vector, values in zip(vectors, sums, strict=True):
                    vector[index][piece] = values

    @torch.no_grad()
    def add(self, into: Vector, vector: Vector, scale: float) -> None:
        """Add ``scale · vector`` to ``into`` in place."""
        if any(is_short(tensor) for tensor in (*into, *vector)):
            for target, values in zip(into, vector, strict=True):
                add_scaled_(target, values, scale)
        else:
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


def pieces(tensor: Tensor | FlatTensor, parts: int = 1) -> Iterator[slice]:
    """Return slices that cover a flat tensor, of about a million elements each, and on a GPU of 16 million.

    Args:
        tensor: the tensor, or what it is like.
        parts: 1, 2, 4 or 8: slices of half, a quarter or an eighth of this length, where a piece needs many temporary
            tensors.
    """
    total = tensor.numel() if isinstance(tensor, Tensor) else tensor.length
    length = (_PIECE_ON_GPU if tensor.device.type == "cuda" else _PIECE) // parts
    for start in range(0, total, length):
        yield slice(start, min(start + length, total))


def is_short(tensor: Tensor) -> bool:
    """Return whether sums of a vector must not be formed in the type that stores it."""
    return tensor.dtype == torch.bfloat16


def widened(tensor: Tensor) -> Tensor:
    """Return the tensor in a type in which sums may be formed: bf16 as fp32, any other type as it is."""
    return tensor.float() if is_short(tensor) else tensor


def add_scaled_(target: Tensor, values: Tensor, scale: float) -> None:
    """Add ``scale`` · ``values`` to a contiguous tensor. The sum is formed in fp32 or better, and rounded once."""
    if not (is_short(target) or is_short(values)):
        target.add_(values, alpha=scale)
        return
    # In bf16, PyTorch also rounds the scale. Where the types differ, it converts a whole tensor first.
    flat, added = target.view(-1), values.reshape(-1)
    for piece in pieces(flat):
        flat[piece].copy_(torch.add(widened(flat[piece]), widened(added[piece]), alpha=scale))


def _sum(terms: Sequence[Term], index: int, piece: slice) -> Tensor:
    """Return a piece of the flat tensor ``index`` of Σ coefficient · vector. A single fp32 vector is not copied."""
    (first, vector), *rest = terms
    part = widened(vector[index][piece])
    if first == 1 and not rest:
        return part
    result = torch.mul(part, first)
    for coefficient, other in rest:
        result.add_(other[index][piece], alpha=coefficient)
    return result


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product in float64, where the tensors are: a copy to the host would wait for the device.

    The pieces keep ``vecdot`` from forming all products at once.
    """
    whole = left.numel() // _CHUNK * _CHUNK
    total: Tensor = torch.linalg.vecdot(widened(left[whole:]), widened(right[whole:])).to(torch.float64)
    if whole:
        partial = [
            torch.linalg.vecdot(widened(left[piece]).view(-1, _CHUNK), widened(right[piece]).view(-1, _CHUNK))
            for piece in pieces(left[:whole])
        ]
        total = total + torch.cat(partial).sum(dtype=torch.float64)
    return total


def flat_length(tensors: Sequence[Tensor]) -> int:
    """Return the total number of elements."""
    return sum(tensor.numel() for tensor in tensors)
