"""A vector space in which a mask decides which weights may change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ofmu.vectors.base import Segment, Vector, VectorSpace


class MaskedSpace(VectorSpace):
    """The subspace of ``inner`` in which only the weights inside the mask may change.

    Gradients are zero outside the mask. So norms, clipping, moments and Hessian-vector products are those of a problem
    in the weights inside the mask. Weight decay and rounding could still change a weight outside the mask.
    :meth:`sync_model` therefore restores these weights, bit for bit, before the model uses them.

    Args:
        inner: the space of all weights. The weights outside the mask keep their current values.
        mask: one tensor of booleans per flat tensor of ``inner``. True: the weight may change.
    """

    def __init__(self, inner: VectorSpace, mask: Vector) -> None:
        self.replicated, self.accumulates_in_place = inner.replicated, inner.accumulates_in_place
        self._inner, self._mask, self._frozen = inner, mask, inner.snapshot()

    def masters(self) -> Vector:
        """Return the flat tensors of all weights, inside and outside the mask."""
        return self._inner.masters()

    @torch.no_grad()
    def sync_model(self) -> None:
        """Restore the weights outside the mask, then copy :meth:`masters` to the model."""
        for master, mask, frozen in zip(self.masters(), self._mask, self._frozen, strict=True):
            master.copy_(torch.where(mask, master, frozen))
        self._inner.sync_model()

    def clear_gradient(self) -> None:
        """Discard the gradients of the last backward pass."""
        self._inner.clear_gradient()

    @torch.no_grad()
    def add_gradient(self, into: Vector, scale: float) -> None:
        """Add ``scale`` times the part of the gradient inside the mask to ``into``."""
        gradient = self._inner.zeros()
        self._inner.add_gradient(gradient, scale)
        for target, part, mask in zip(into, gradient, self._mask, strict=True):
            target.add_(part.mul_(mask))

    @contextmanager
    def accumulating_in(self, target: Vector, scale: float, *, first_order: bool = True) -> Iterator[None]:
        """Let backward passes inside the block add ``scale`` times their gradients inside the mask to ``target``."""
        with self._inner.accumulating_in(target, scale, first_order=first_order):
            yield
        # All vectors of this space are 0 outside the mask, so only the new gradient is removed here.
        for part, mask in zip(target, self._mask, strict=True):
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
