"""What a method says of the vectors that it holds. ``ofmu plan`` multiplies them by the bytes of one vector."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class HeldVectors:
    """Numbers of vectors at once, besides the parameters. One vector has as many values as a rank has masters.

    Each method declares these numbers beside the code that allocates the vectors. A test counts the real ones.
    """

    kept: float = 0
    """From one step to the next: moments, a frozen target, a mask."""
    in_pass: float = 0
    """Besides ``kept``, at most while a backward pass runs, the vector to which its gradient is added included."""
    between: float = 0
    """Besides ``kept``, at most while no backward pass runs."""
    exact_in_pass: float = 0
    """Of ``in_pass``, those that are in fp32 whatever ``engine.gradient_precision`` is, as ``kept`` always are."""
    exact_between: float = 0
    """Of ``between``, those that are in fp32, such as copies of the parameters."""

    def with_kept(self, more: float) -> HeldVectors:
        """Return the numbers of a run that keeps ``more`` vectors."""
        return replace(self, kept=self.kept + more)

    def bytes_in_pass(self, vector: float, gradient: float) -> float:
        """Return the bytes of ``in_pass``, where these are the bytes of a vector in fp32 and of one of gradients."""
        return self.exact_in_pass * vector + (self.in_pass - self.exact_in_pass) * gradient

    def bytes_between(self, vector: float, gradient: float) -> float:
        """Return the bytes of ``between``."""
        return self.exact_between * vector + (self.between - self.exact_between) * gradient


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Passes over global minibatches. A double backward pass counts as the cost tracker counts it."""

    forget: float = 0
    """Gradient evaluations of forget minibatches."""
    retain: float = 0
    """Gradient evaluations of retain minibatches."""
    forget_forward: int = 0
    """Forward passes of forget minibatches without a backward pass."""
    retain_forward: int = 0
    """Forward passes of retain minibatches without a backward pass."""

    @property
    def gradient_evaluations(self) -> float:
        """Gradient evaluations of both sets."""
        return self.forget + self.retain

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            forget=self.forget + other.forget,
            retain=self.retain + other.retain,
            forget_forward=self.forget_forward + other.forget_forward,
            retain_forward=self.retain_forward + other.retain_forward,
        )

    def __mul__(self, count: int) -> Passes:
        return Passes(
            forget=self.forget * count,
            retain=self.retain * count,
            forget_forward=self.forget_forward * count,
            retain_forward=self.retain_forward * count,
        )

    def on_share(self, share: float) -> Passes:
        """Return the gradient evaluations, each on a share of its minibatch, without the forward passes."""
        return Passes(forget=self.forget * share, retain=self.retain * share)
