"""What OFMU knows at one point: both losses, their gradients, ∇Φ, and the terms and places of its differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar, get_args

from ofmu.losses import Loss
from ofmu.methods.ofmu.similarity import Similarity
from ofmu.vectors.base import Displacement, Term, Vector

RowT = TypeVar("RowT")
Hinge: TypeAlias = Literal["closed", "open"]
"""The state of the hinge. ∇²Φ·∇Φ is another product in each of them."""
HINGES: tuple[Hinge, ...] = get_args(Hinge)


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

    @property
    def hinge(self) -> Hinge:
        """The state of the hinge by name."""
        return "open" if self.hinge_open else "closed"


@dataclass
class Ascent:
    """What an ascent step uses: L_f, ∇Φ and ‖∇Φ‖."""

    forget_loss: float
    gradient: Vector
    norm: float
    hinge_open: bool


@dataclass
class SimilarityTerm(Generic[RowT]):
    """One of the two products in ∇S: H_f a, or H_r b."""

    loss: Loss[RowT]
    rows: Sequence[RowT]
    gradient: Vector
    """The gradient of ``loss``."""
    direction: Sequence[Term]
    """The direction (a, or b) as terms in g_f and g_r. The direction is never formed as a vector of its own."""
    norm: float
    """The norm of the direction."""


@dataclass
class Place:
    """The current parameters as a sum: an origin, which can be restored, and a displacement from the origin."""

    origin: Vector
    displacements: tuple[Displacement, ...] = ()
