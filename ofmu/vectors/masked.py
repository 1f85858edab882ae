"""A vector space in which a mask decides which weights may change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ofmu.vectors.base import FlatTensor, Segment, Vector, VectorSpace


class MaskedSpace(VectorSpace):
    """The subspace of ``inner`` in which only the weights inside the mask may change.

    Every vector is zero outside the mask. So norms, clipping, moments and Hessian-vector products are those of a
    problem in the weights inside the mask. Weight decay and rounding could still change a weight outside the mask.
    :meth:`sync_model` therefore restores these weights, bit for bit, before the model uses them.

    Args:
        inner: the space of all weights. The weights outside the mask keep their current values.
        mask: one tensor of booleans per flat tensor of ``inner``. True: the weight may change.
    """

    def __init__(self, inner: VectorSpace, mask: Vector) -> None:
        self.replicated, self.accumulates_in_place = inner.replicated, inner.accumulates_in_place
        self._inner, self._mask, self._frozen = inner, mask, inner.snapshot()

    def masters(self) -> Vector:
        """Return the flat tensors of all weights, inside and outside the mask, as the inner space does."""
        return self._inner.masters()

    def layout(self) -> list[FlatTensor]:
        """Return what the flat tensors of a vector are like."""
        return self._inner.layout()

    def read_parameters(self, index: int, piece: slice) -> Tensor:
        """Return a piece of all weights."""
        return self._inner.read_parameters(index, piece)

    def write_parameters(self, index: int, piece: slice, values: Tensor) -> None:
        """Store a piece of all weights. :meth:`sync_model` restores those outside the mask."""
        self._inner.write_parameters(index, piece, values)

    def add_to_parameters(self, vector: Vector, scale: float) -> None:
        """Add ``scale · vector`` to all weights. :meth:`sync_model` restores those outside the mask."""
        self._inner.add_to_parameters(vector, scale)

    def parameter_norm(self) -> float:
        """Return the global norm of all weights."""
        return self._inner.parameter_norm()

    def gather_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all weights on every rank, one parameter after the other."""
        return self._inner.gather_parameters()

    def gradient_zeros(self) -> Vector:
        """Return a new zero vector for a gradient."""
        return self._inner.gradient_zeros()

    def snapshot(self) -> Vector:
        """Return a copy of all weights."""
        return self._inner.snapshot()

    @torch.no_grad()
    def sync_model(self) -> None:
        """Restore the weights outside the mask, then let the model use the weights."""
        for index, piece in self.parameter_pieces():
            present, frozen = self.read_parameters(index, piece), self._frozen[index][piece]
            self.write_parameters(index, piece, torch.where(self._mask[index][piece], present, frozen))
        self._inner.sync_model()

    def clear_gradient(self) -> None:
        """Discard the gradients of the last backward pass."""
        self._inner.clear_gradient()

    @torch.no_grad()
    def add_gradient(self, into: Vector, scale: float) -> None:
        """Add ``scale`` times the part of the gradient inside the mask to ``into``."""
        gradient = self._inner.gradient_zeros()
        self._inner.add_gradient(gradient, scale)
        for target, part, mask in zip(into, gradient, self._mask, strict=True):
            target.add_(part.mul_(mask))

    @contextmanager
    def accumulating_in(self, target: Vector, scale: float, *, first_order: bool = True) -> Iterator[None]:
        """Let backward passes inside the block add ``scale`` times their gradients inside the mask to ``target``."""
        with self._inner.accumulating_in(target, scale, first_order=first_order):
            yield
        # All vectors of this space are 0 outside the mask, so only the new gradient is removed here.
        self.clear_frozen(target)

    @torch.no_grad()
    def clear_frozen(self, vector: Vector) -> None:
        """Set the elements of ``vector`` outside the mask to 0."""
        for part, mask in zip(vector, self._mask, strict=True):
            part.masked_fill_(~mask, 0.0)

    def segments(self) -> list[Segment]:
        """Return the segments of the parameters that the local flat tensors hold."""
        return self._inner.segments()

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of all parameters."""
        return self._inner.shapes()

    def gather_each(self, vector: Vector) -> Iterator[tuple[str, Tensor]]:
        """Yield the whole vector on every rank, one parameter after the other."""
        return self._inner.gather_each(vector)
