"""Algorithm 1 of OFMU (arXiv 2509.22483): inner ascent of Φ, outer descent of F = L_r + ρ‖∇Φ‖².

for k = 0 … K−1
    for t = 0 … T−1                                  inner loop, on fresh minibatches
        θ ← θ + η_in ∇Φ(θ)
    θ ← θ − η_out (g_r + 2ρ_k ∇²Φ(θ)·∇Φ(θ))          outer step, from the end of the inner loop
    ρ_{k+1} ≥ ρ_k
    stop if ‖∇Φ(θ)‖ is within the tolerance
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from ofmu.data.sampler import MinibatchSampler
from ofmu.errors import NonFiniteLossError
from ofmu.losses import Loss
from ofmu.methods.base import Context, Method
from ofmu.methods.ofmu.config import OfmuConfig
from ofmu.methods.ofmu.derivatives import Derivatives, PhiGradient
from ofmu.methods.ofmu.loss import ClampedLoss, unforgotten_weight
from ofmu.methods.registry import register
from ofmu.vectors.base import Vector
from ofmu.vectors.optimizers import ShardOptimizer

RowT = TypeVar("RowT")


@dataclass(frozen=True, kw_only=True)
class OuterRecord:
    """What one outer step computed at its point. The point lies behind the inner loop and before the outer update."""

    outer_step: int
    """k + 1"""
    forget_loss: float
    """L_f, clamped if ``forget_margin`` is set."""
    retain_loss: float
    """L_r"""
    unforgotten_weight: float | None
    """See :func:`ofmu.methods.ofmu.loss.unforgotten_weight`. None without a ``forget_margin``."""
    similarity: float
    """S"""
    hinge_open: bool
    """Whether g_f was decorrelated from g_r."""
    phi_norm: float
    """‖∇Φ‖, the stationarity residual. With the decorrelation ``projection``: ‖p‖."""
    forget_gradient_norm: float
    """‖g_f‖"""
    retain_gradient_norm: float
    """‖g_r‖"""
    outer_norm: float
    """‖g_r + 2ρ∇²Φ∇Φ‖ before clipping."""
    penalty_weight: float
    """ρ_k"""
    step_check: float | None
    """Relative change of ∇S when the finite-difference step doubles. None: there was no check at this step."""


@register("ofmu")
class OFMU(Method[RowT]):
    """Inner ascent of Φ = L_f − β·max(0, S − τ), with L_f clamped at δ, and outer descent of F = L_r + ρ‖∇Φ‖²."""

    Config = OfmuConfig
    title = "OFMU"
    source = "Asif & Amiri, arXiv 2509.22483, Algorithm 1"
    tasks = frozenset({"language", "vision"})
    # With few outer steps, no other setting undoes the damage of the ascent: docs/results.md, "What OFMU needs".
    space: ClassVar = {
        "penalty_weight": {"low": 1e-5, "high": 1e-2, "log": True},
        "similarity_weight": {"low": 1e-2, "high": 3.0, "log": True},
        "similarity_threshold": {"low": -0.5, "high": 0.5},
        "forget_margin": {"low": 1.0, "high": 5.0},
        "inner_steps": {"low": 1, "high": 4},
        "outer_steps": {"low": 12, "high": 60, "log": True},
        "inner_lr": {"low": 1e-2, "high": 1e-1, "log": True},
        "outer_lr": {"low": 1e-4, "high": 2e-3, "log": True},
    }
    # The paper states no learning rates, no β and no schedule of ρ. Those numbers are this project's choice.
    published: ClassVar[dict[str, Any]] = {
        "forget_margin": None,
        "similarity_scale": "absolute",
        "inner_update": "sgd",
        "outer_update": "sgd",
        "similarity_threshold": -1.0,
        "inner_steps": 5,
        "outer_steps": 10,
        "similarity_weight": 0.1,
        "penalty_weight": 0.1,
        "penalty_growth": 1.5,
        "penalty_max": 10.0,
        "inner_lr": 1e-2,
        "outer_lr": 1e-2,
    }
    no_op_config: ClassVar = {"outer_steps": 0}

    def __init__(self, context: Context[RowT], config: OfmuConfig) -> None:
        engine, task = context.engine, context.task
        self._engine, self._space, self._config = engine, engine.space, config
        forget_loss: Loss[RowT] = task.loss
        if config.forget_margin is not None:
            forget_loss = ClampedLoss(task.loss, config.forget_margin, config.forget_sharpness)
        self._derivatives = Derivatives(engine, forget_loss, task.loss, config)
        self._forget_sampler = MinibatchSampler(task.forget_rows, config.batch_size, context.seed, "forget")
        self._retain_sampler = MinibatchSampler(task.retain_rows, config.batch_size, context.seed, "retain")
        self._inner_optimizer = ShardOptimizer(self._space, config.inner_update, config.inner_lr, ascend=True)
        self._outer_optimizer = ShardOptimizer(
            self._space, config.outer_update, config.outer_lr, weight_decay=config.weight_decay
        )
        self._outer_steps = 0
        self._penalty_weight = config.penalty_weight
        self._hinge_was_open = False

    @property
    def total_rounds(self) -> int:
        """K. One round is one outer step with the inner loop before it."""
        return self._config.outer_steps

    @property
    def steps_taken(self) -> int:
        """Number of outer steps taken."""
        return self._outer_steps

    def rounds(self) -> Iterator[OuterRecord]:
        """Run the remaining outer steps. Yield after each outer step. Stop once ‖∇Φ‖ is within the tolerance.

        Raises:
            NonFiniteLossError: a loss or the norm of a gradient is NaN or infinite. The message names the outer step.
        """
        config, costs = self._config, self._engine.cost_tracker
        while self._outer_steps < config.outer_steps and not self.stationary:
            try:
                with costs.phase("inner"):
                    for _ in range(config.inner_steps):
                        self._inner_step()
                with costs.phase("outer"):
                    record = self._outer_step()
            except NonFiniteLossError as error:
                raise NonFiniteLossError(
                    f"Outer step {self._outer_steps + 1} of {config.outer_steps} failed because {error}: "
                    "lower method.inner_lr, outer_lr, inner_steps or penalty_weight"
                ) from error
            self.stationary = record.phi_norm <= config.stationarity_tolerance
            yield record
        self._warn_if_never_decorrelated()

    def _inner_step(self) -> None:
        """θ ← θ + η_in ∇Φ(θ), on fresh minibatches."""
        phi = self._draw_phi_gradient()
        self._inner_optimizer.lr = self._inner_lr(phi)
        self._inner_optimizer.step(phi.gradient, phi.norm)

    def _inner_lr(self, phi: PhiGradient[RowT]) -> float:
        """Return η_in, which is multiplied by the unforgotten weight for ``normalized`` and ``adamw``.

        The clamp of L_f shortens ∇Φ as the rows are forgotten. These two rules do not depend on the length of ∇Φ, so
        their rate must shrink instead.
        """
        weight = self._unforgotten_weight(phi)
        if weight is None or self._config.inner_update == "sgd":
            return self._config.inner_lr
        return self._config.inner_lr * weight

    def _outer_step(self) -> OuterRecord:
        """θ ← θ − η_out (g_r + 2ρ_k ∇²Φ(θ)·∇Φ(θ)), on fresh minibatches, from where the inner loop ended."""
        phi = self._draw_phi_gradient()
        step_check = self._step_check(phi)
        direction, norm = self._outer_direction(phi)
        self._outer_optimizer.step(self._clipped(direction, norm))
        self._outer_steps += 1
        record = self._record(phi, norm, step_check)
        self._increase_penalty()
        return record

    def _outer_direction(self, phi: PhiGradient[RowT]) -> tuple[Vector, float]:
        """Return g_r + 2ρ_k ∇²Φ·∇Φ and its norm. The direction overwrites g_r in ``phi``, to save a vector."""
        direction, rho = phi.point.retain_gradient, self._penalty_weight
        if rho == 0:
            return direction, phi.point.similarity.retain_norm
        self._space.add(direction, self._derivatives.penalty_product(phi), 2 * rho)
        norm = self._space.norm(direction)
        if not math.isfinite(norm):
            raise NonFiniteLossError(f"the norm of the outer direction became {norm}")
        return direction, norm

    def _clipped(self, direction: Vector, norm: float) -> Vector:
        limit = self._config.max_grad_norm
        if limit is None or norm <= limit:
            return direction
        return self._space.combine((limit / norm, direction))

    def _increase_penalty(self) -> None:
        """ρ_{k+1} = min(growth·ρ_k, cap)."""
        increased = self._penalty_weight * self._config.penalty_growth
        cap = self._config.penalty_max
        self._penalty_weight = increased if cap is None else min(increased, cap)

    def _draw_phi_gradient(self) -> PhiGradient[RowT]:
        """Return ∇Φ on fresh minibatches of D_f and D_r."""
        phi = self._derivatives.phi_gradient(self._forget_sampler.draw(), self._retain_sampler.draw())
        self._hinge_was_open |= phi.hinge_open
        return phi

    def _step_check(self, phi: PhiGradient[RowT]) -> float | None:
        every = self._config.derivative_check_every
        due = every > 0 and (self._outer_steps + 1) % every == 0
        return self._derivatives.step_check(phi) if due else None

    def _unforgotten_weight(self, phi: PhiGradient[RowT]) -> float | None:
        margin = self._config.forget_margin
        if margin is None:
            return None
        return unforgotten_weight(phi.point.forget_loss, margin, self._config.forget_sharpness)

    def _record(self, phi: PhiGradient[RowT], outer_norm: float, step_check: float | None) -> OuterRecord:
        point = phi.point
        return OuterRecord(
            outer_step=self._outer_steps,
            forget_loss=point.forget_loss,
            retain_loss=point.retain_loss,
            unforgotten_weight=self._unforgotten_weight(phi),
            similarity=point.similarity.value,
            hinge_open=phi.hinge_open,
            phi_norm=phi.norm,
            forget_gradient_norm=point.similarity.forget_norm,
            retain_gradient_norm=point.similarity.retain_norm,
            outer_norm=outer_norm,
            penalty_weight=self._penalty_weight,
            step_check=step_check,
        )

    def _warn_if_never_decorrelated(self) -> None:
        config = self._config
        if self._outer_steps and config.decorrelates and not self._hinge_was_open:
            setting = "similarity_weight" if config.decorrelation == "cosine" else "decorrelation"
            warnings.warn(
                f"method.{setting} {getattr(config, setting)} had no effect: the similarity never exceeded "
                f"similarity_threshold {config.similarity_threshold}",
                stacklevel=3,
            )

    def state(self) -> dict[str, Any]:
        """Return k, ρ_k, the positions of the samplers and the steps of the optimizers as JSON values."""
        return {
            "outer_step": self._outer_steps,
            "penalty_weight": self._penalty_weight,
            "stationary": self.stationary,
            "hinge_was_open": self._hinge_was_open,
            "forget_position": self._forget_sampler.position,
            "retain_position": self._retain_sampler.position,
            "inner_optimizer_steps": self._inner_optimizer.steps,
            "outer_optimizer_steps": self._outer_optimizer.steps,
        }

    def vectors(self) -> dict[str, Vector]:
        """Return the parameters and the moments of both optimizers by name. These are the live tensors, no copies."""
        vectors = {"theta": self._space.masters()}
        for name, optimizer in self._optimizers().items():
            vectors |= {f"{name}.{moment}": vector for moment, vector in optimizer.vectors().items()}
        return vectors

    def restore(self, state: dict[str, Any], vectors: dict[str, Vector]) -> None:
        """Continue from a checkpoint, bit for bit as the interrupted run would have continued."""
        self._space.restore(vectors["theta"])
        for name, optimizer in self._optimizers().items():
            prefix = f"{name}."
            moments = {key.removeprefix(prefix): vector for key, vector in vectors.items() if key.startswith(prefix)}
            optimizer.restore(int(state[f"{name}_optimizer_steps"]), moments)
        self._outer_steps = int(state["outer_step"])
        self._penalty_weight = float(state["penalty_weight"])
        self.stationary = bool(state["stationary"])
        self._hinge_was_open = bool(state["hinge_was_open"])
        self._forget_sampler.position = int(state["forget_position"])
        self._retain_sampler.position = int(state["retain_position"])

    def _optimizers(self) -> dict[str, ShardOptimizer]:
        return {"inner": self._inner_optimizer, "outer": self._outer_optimizer}
