"""What OFMU knows at one point: both losses, their gradients, and ∇Φ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ofmu.methods.ofmu.similarity import Similarity
from ofmu.vectors.base import Vector

RowT = TypeVar("RowT")


@dataclass
class Point(Generic[RowT]):
    """Both losses and their gradients at one θ, on one pair of minibatches."""

    forget_rows: Sequence[RowT]
    retain_rows: Sequence[RowT]
    forget_loss: float
    retain_loss: float
    forget_gradient: Vector
    """g_f. Empty once g_f was released."""
    retain_gradient: Vector
    """g_r. Empty once both gradients were released."""
    similarity: Similarity

    def release_forget_gradient(self) -> None:
        """Free the memory of g_f, which is as large as the model."""
        self.forget_gradient = []

    def release_gradients(self) -> None:
        """Let go of both gradients. Another name may still hold them."""
        self.forget_gradient, self.retain_gradient = [], []


@dataclass
class PhiGradient(Generic[RowT]):
    """∇Φ at one point. With the decorrelation ``projection``, p takes the place of ∇Φ."""

    point: Point[RowT]
    hinge_open: bool
    """Whether g_f was decorrelated: S > τ, and the config decorrelates."""
    weight: float
    """The β that multiplies ∇S."""
    gradient: Vector
    """∇Φ, the ascent direction."""
    norm: float
    """‖∇Φ‖"""


@dataclass
class Ascent:
    """What an ascent step uses: L_f, ∇Φ and ‖∇Φ‖."""

    forget_loss: float
    gradient: Vector
    norm: float
    hinge_open: bool
