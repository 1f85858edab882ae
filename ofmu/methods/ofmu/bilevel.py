"""Algorithm 1 of the paper (arXiv 2509.22483): inner ascent on Φ, outer descent on F = L_r + ρ‖∇Φ‖²."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ofmu.data.sampler import MinibatchSampler
from ofmu.engine.base import Engine
from ofmu.errors import NonFiniteLossError
from ofmu.losses import Loss, RowwiseLoss
from ofmu.methods.ofmu.derivatives import Derivatives, PhiGradient
from ofmu.methods.ofmu.loss import BoundedLoss, gate
from ofmu.vectors import Vector
from ofmu.vectors.optimizers import ShardOptimizer

if TYPE_CHECKING:
    from ofmu.methods.ofmu.config import OfmuConfig

RowT = TypeVar("RowT")


@dataclass(frozen=True, kw_only=True)
class OuterRecord:
    """What one outer step saw, at the point where its inner loop ended and before the step was taken."""

    outer_step: int
    """k + 1"""
    forget_loss: float
    """L_f, bounded where the settings say so."""
    retain_loss: float
    forget_gate: float | None
    """How far from forgotten the minibatch is, see :func:`ofmu.methods.ofmu.loss.gate`; None without a ``forget_level``."""
    similarity: float
    """S"""
    hinge_open: bool
    phi_norm: float
    """‖∇Φ‖, the stationarity residual; ‖p‖ under the decorrelation ``projection``."""
    forget_gradient_norm: float
    retain_gradient_norm: float
    outer_norm: float
    """‖g_r + 2ρ∇²Φ∇Φ‖, before clipping."""
    penalty_weight: float
    """ρ_k"""
    step_check: float | None
    """Relative change of ∇S when the finite-difference step doubles; None where it was not taken."""


class Bilevel(Generic[RowT]):
    """The two loops, one outer step at a time, with a state that a checkpoint can hold."""

    def __init__(
        self,
        engine: Engine,
        forget: RowwiseLoss[RowT],
        retain: Loss[RowT],
        forget_rows: Sequence[RowT],
        retain_rows: Sequence[RowT],
        method: OfmuConfig,
        seed: int,
    ) -> None:
        self._engine, self._space, self._method = engine, engine.space, method
        inner: Loss[RowT] = forget
        if method.forget_level is not None:
            inner = BoundedLoss(forget, method.forget_level, method.forget_sharpness)
        self._derivatives = Derivatives(engine, inner, retain, method)
        self._forget_sampler = MinibatchSampler(forget_rows, method.batch_size, seed, "forget")
        self._retain_sampler = MinibatchSampler(retain_rows, method.batch_size, seed, "retain")
        self.inner_optimizer = ShardOptimizer(self._space, method.inner_update, method.inner_lr, ascend=True)
        self.outer_optimizer = ShardOptimizer(
            self._space, method.outer_update, method.outer_lr, weight_decay=method.weight_decay
        )
        self.outer_step = 0
        self.penalty_weight = method.penalty_weight
        self.stationary = False
        self._hinge_was_open = False

    @property
    def steps_taken(self) -> int:
        """Outer steps taken so far."""
        return self.outer_step

    def rounds(self) -> Iterator[OuterRecord]:
        """Run the remaining outer steps, yielding after each; stop early once ‖∇Φ‖ is within the tolerance.

        Raises:
            NonFiniteLossError: a loss or gradient norm is NaN or infinite; the sentence names the step.
        """
        method, ledger = self._method, self._engine.ledger
        while self.outer_step < method.outer_steps and not self.stationary:
            try:
                with ledger.phase("inner"):
                    for _ in range(method.inner_steps):
                        self._inner_step()
                with ledger.phase("outer"):
                    record = self._outer_step()
            except NonFiniteLossError as error:
                raise NonFiniteLossError(
                    f"Outer step {self.outer_step + 1} of {method.outer_steps} failed, {error}: "
                    "lower method.inner_lr, outer_lr, inner_steps or penalty_weight"
                ) from error
            self.stationary = record.phi_norm <= method.stationarity_tolerance
            yield record
        if self.outer_step and method.decorrelates and not self._hinge_was_open:
            setting = "similarity_weight" if method.decorrelation == "cosine" else "decorrelation"
            warnings.warn(
                f"method.{setting} {getattr(method, setting)} had no effect: the similarity never exceeded "
                f"similarity_threshold {method.similarity_threshold}",
                stacklevel=2,
            )

    def _phi(self) -> tuple[PhiGradient, list[RowT], list[RowT]]:
        forget_rows, retain_rows = self._forget_sampler.draw(), self._retain_sampler.draw()
        phi = self._derivatives.phi_gradient(forget_rows, retain_rows)
        self._hinge_was_open |= phi.hinge_open
        return phi, forget_rows, retain_rows

    def _inner_step(self) -> None:
        """θ ← θ + η_in ∇Φ(θ) on fresh minibatches.

        A bounded loss shortens ∇Φ by its gate, which ``normalized`` and ``adamw`` would undo: their rate takes it.
        """
        phi, _, _ = self._phi()
        opening = self._gate(phi)
        if opening is not None and self._method.inner_update != "sgd":
            self.inner_optimizer.lr = self._method.inner_lr * opening
        self.inner_optimizer.step(phi.gradient, phi.norm)

    def _outer_step(self) -> OuterRecord:
        """θ ← θ − η_out (g_r + 2 ρ_k ∇²Φ·∇Φ), warm-started where the inner loop ended."""
        phi, forget_rows, retain_rows = self._phi()
        due = self._method.derivative_check_every
        check = None
        if due and (self.outer_step + 1) % due == 0:
            check = self._derivatives.step_check(phi, forget_rows, retain_rows)
        direction = phi.retain_gradient
        norm = phi.retain_norm
        rho = self.penalty_weight
        if rho > 0:
            product = self._derivatives.penalty_product(phi, forget_rows, retain_rows)
            self._space.add(direction, product, 2 * rho)
            norm = self._space.norm(direction)
            if not math.isfinite(norm):
                raise NonFiniteLossError(f"the norm of the outer direction became {norm}")
        self.outer_optimizer.step(self._clipped(direction, norm))
        self.outer_step += 1
        self._grow_penalty()
        return OuterRecord(
            outer_step=self.outer_step,
            forget_loss=phi.forget_loss,
            retain_loss=phi.retain_loss,
            forget_gate=self._gate(phi),
            similarity=phi.similarity,
            hinge_open=phi.hinge_open,
            phi_norm=phi.norm,
            forget_gradient_norm=phi.forget_norm,
            retain_gradient_norm=phi.retain_norm,
            outer_norm=norm,
            penalty_weight=rho,
            step_check=check,
        )

    def _gate(self, phi: PhiGradient) -> float | None:
        level = self._method.forget_level
        return None if level is None else gate(phi.forget_loss, level, self._method.forget_sharpness)

    def _clipped(self, direction: Vector, norm: float) -> Vector:
        limit = self._method.max_grad_norm
        if limit is None or norm <= limit:
            return direction
        return self._space.combine((limit / norm, direction))

    def _grow_penalty(self) -> None:
        """ρ_{k+1} = min(growth · ρ_k, cap)."""
        grown = self.penalty_weight * self._method.penalty_growth
        cap = self._method.penalty_max
        self.penalty_weight = grown if cap is None else min(grown, cap)

    def state(self) -> dict[str, Any]:
        """Return the loop's position, samplers and ρ as JSON values."""
        return {
            "outer_step": self.outer_step,
            "penalty_weight": self.penalty_weight,
            "stationary": self.stationary,
            "hinge_was_open": self._hinge_was_open,
            "forget_position": self._forget_sampler.position,
            "retain_position": self._retain_sampler.position,
            "inner_optimizer_steps": self.inner_optimizer.steps,
            "outer_optimizer_steps": self.outer_optimizer.steps,
        }

    def vectors(self) -> dict[str, Vector]:
        """Return the parameters and the optimizers' moments, live, by name."""
        found = {"theta": self._space.masters()}
        for name, optimizer in (("inner", self.inner_optimizer), ("outer", self.outer_optimizer)):
            found.update({f"{name}.{key}": vector for key, vector in optimizer.vectors().items()})
        return found

    def restore(self, state: dict[str, Any], vectors: dict[str, Vector]) -> None:
        """Continue from a checkpoint as if nothing had happened."""
        self._space.restore(vectors["theta"])
        for name, optimizer in (("inner", self.inner_optimizer), ("outer", self.outer_optimizer)):
            moments = {k.removeprefix(f"{name}."): v for k, v in vectors.items() if k.startswith(f"{name}.")}
            optimizer.restore(int(state[f"{name}_optimizer_steps"]), moments)
        self.outer_step = int(state["outer_step"])
        self.penalty_weight = float(state["penalty_weight"])
        self.stationary = bool(state["stationary"])
        self._hinge_was_open = bool(state["hinge_was_open"])
        self._forget_sampler.position = int(state["forget_position"])
        self._retain_sampler.position = int(state["retain_position"])
