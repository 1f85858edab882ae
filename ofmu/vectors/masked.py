"""A vector space in which some weights may move and all others are held."""

from __future__ import annotations

import torch
from torch import Tensor

from ofmu.vectors.base import Segment, Vector, VectorSpace


class MaskedSpace(VectorSpace):
    """The coordinate subspace of ``inner`` in which ``free`` is true.

    Gradients vanish outside of it, so that norms, clipping, moments and Hessian products are those of a problem in
    the free weights alone. Whatever else would move a held weight (weight decay, rounding) is undone, bit for bit,
    before the model sees it.

    Args:
        inner: the space of all weights, at the values that are held.
        free: one tensor of booleans per flat tensor of ``inner``.
    """

    def __init__(self, inner: VectorSpace, free: Vector) -> None:
        self.replicated = inner.replicated
        self._inner, self._free, self._held = inner, free, inner.snapshot()

    def masters(self) -> Vector:
        """Return the live flat tensors of all weights, held ones included."""
        return self._inner.masters()

    @torch.no_grad()
    def sync_model(self) -> None:
        """Put the held weights back, then make the forward pass see what :meth:`masters` holds."""
        for master, free, held in zip(self.masters(), self._free, self._held, strict=True):
            master.copy_(torch.where(free, master, held))
        self._inner.sync_model()

    def clear_gradient(self) -> None:
        """Forget the gradients of the last backward pass."""
        self._inner.clear_gradient()

    @torch.no_grad()
    def add_gradient(self, into: Vector, scale: float) -> None:
        """Add ``scale`` times the gradient's free part to ``into``."""
        gradient = self._inner.zeros()
        self._inner.add_gradient(gradient, scale)
        for target, part, free in zip(into, gradient, self._free, strict=True):
            target.add_(part.mul_(free))

    def segments(self) -> list[Segment]:
        """Return which parameter elements the local flat tensors hold."""
        return self._inner.segments()

    def gather(self, vector: Vector) -> dict[str, Tensor]:
        """Return the vector in full on every rank, by parameter name."""
        return self._inner.gather(vector)
