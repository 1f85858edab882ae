"""Algorithm 1 of OFMU (arXiv 2509.22483): inner ascent of Φ, outer descent of F = L_r + ρ‖∇Φ‖²."""

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
    # With few outer steps the damage of the ascent stays, whatever the other settings: docs/results.md, "What OFMU needs"
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

    def __init__(self, context: Context[RowT], config: OfmuConfig, *, retain_loss: Loss[RowT] | None = None) -> None:
        """Start from the engine's parameters.

        Args:
            context: the engine, the task and the seed.
            config: the settings.
            retain_loss: L_r; None takes the task's loss.
        """
        engine, task = context.engine, context.task
        self._engine, self._space, self._config = engine, engine.space, config
        forget_loss: Loss[RowT] = task.loss
        if config.forget_margin is not None:
            forget_loss = ClampedLoss(task.loss, config.forget_margin, config.forget_sharpness)
        self._derivatives = Derivatives(engine, forget_loss, retain_loss or task.loss, config)
        self._forget_sampler = MinibatchSampler(task.forget_rows, config.batch_size, context.seed, "forget")
        self._retain_sampler = MinibatchSampler(task.retain_rows, config.batch_size, context.seed, "retain")
        self.inner_optimizer = ShardOptimizer(self._space, config.inner_update, config.inner_lr, ascend=True)
        self.outer_optimizer = ShardOptimizer(
            self._space, config.outer_update, config.outer_lr, weight_decay=config.weight_decay
        )
        self.outer_step = 0
        self.penalty_weight = config.penalty_weight
        self.stationary = False
        self._hinge_was_open = False

    @property
    def total_rounds(self) -> int:
        """K. One round is one outer step."""
        return self._config.outer_steps

    @property
    def steps_taken(self) -> int:
        """Outer steps taken so far."""
        return self.outer_step

    def rounds(self) -> Iterator[OuterRecord]:
        """Run the remaining outer steps, yielding after each; stop early once ‖∇Φ‖ is within the tolerance.

        Raises:
            NonFiniteLossError: a loss or gradient norm is NaN or infinite; the sentence names the step.
        """
        config, costs = self._config, self._engine.cost_tracker
        while self.outer_step < config.outer_steps and not self.stationary:
            try:
                with costs.phase("inner"):
                    for _ in range(config.inner_steps):
                        self._inner_step()
                with costs.phase("outer"):
                    record = self._outer_step()
            except NonFiniteLossError as error:
                raise NonFiniteLossError(
                    f"Outer step {self.outer_step + 1} of {config.outer_steps} failed, {error}: "
                    "lower method.inner_lr, outer_lr, inner_steps or penalty_weight"
                ) from error
            self.stationary = record.phi_norm <= config.stationarity_tolerance
            yield record
        if self.outer_step and config.decorrelates and not self._hinge_was_open:
            setting = "similarity_weight" if config.decorrelation == "cosine" else "decorrelation"
            warnings.warn(
                f"method.{setting} {getattr(config, setting)} had no effect: the similarity never exceeded "
                f"similarity_threshold {config.similarity_threshold}",
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
        opening = self._unforgotten_weight(phi)
        if opening is not None and self._config.inner_update != "sgd":
            self.inner_optimizer.lr = self._config.inner_lr * opening
        self.inner_optimizer.step(phi.gradient, phi.norm)

    def _outer_step(self) -> OuterRecord:
        """θ ← θ − η_out (g_r + 2 ρ_k ∇²Φ·∇Φ), warm-started where the inner loop ended."""
        phi, forget_rows, retain_rows = self._phi()
        due = self._config.derivative_check_every
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
            unforgotten_weight=self._unforgotten_weight(phi),
            similarity=phi.similarity,
            hinge_open=phi.hinge_open,
            phi_norm=phi.norm,
            forget_gradient_norm=phi.forget_norm,
            retain_gradient_norm=phi.retain_norm,
            outer_norm=norm,
            penalty_weight=rho,
            step_check=check,
        )

    def _unforgotten_weight(self, phi: PhiGradient) -> float | None:
        level = self._config.forget_margin
        return None if level is None else unforgotten_weight(phi.forget_loss, level, self._config.forget_sharpness)

    def _clipped(self, direction: Vector, norm: float) -> Vector:
        limit = self._config.max_grad_norm
        if limit is None or norm <= limit:
            return direction
        return self._space.combine((limit / norm, direction))

    def _grow_penalty(self) -> None:
        """ρ_{k+1} = min(growth · ρ_k, cap)."""
        grown = self.penalty_weight * self._config.penalty_growth
        cap = self._config.penalty_max
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
