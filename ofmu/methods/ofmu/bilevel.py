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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

from ofmu.errors import NonFiniteLossError
from ofmu.losses import Loss
from ofmu.methods.base import Context, Method, without_settings
from ofmu.methods.forget_stop import ForgetStop
from ofmu.methods.ofmu.checked import CheckedDerivatives
from ofmu.methods.ofmu.config import PUBLISHED, VARIANTS, OfmuConfig, without_effect
from ofmu.methods.ofmu.derivatives import Derivatives
from ofmu.methods.ofmu.footprint import held_vectors, passes
from ofmu.methods.ofmu.loss import ClampedLoss, unforgotten_weight
from ofmu.methods.ofmu.points import PhiGradient
from ofmu.methods.ofmu.rates import Rates, find_rates
from ofmu.methods.registry import register
from ofmu.vectors.base import Vector
from ofmu.vectors.held import HeldVectors, Passes
from ofmu.vectors.optimizers import ShardOptimizer, clipping_factor

RowT = TypeVar("RowT")


@dataclass(frozen=True, kw_only=True)
class OuterRecord:
    """What one outer step computed at its point. The point lies behind the inner loop and before the outer update.

    Fields that are None were not computed, since the outer step did not need them: see ``diagnostics_every``.
    """

    outer_step: int
    """k + 1"""
    inner_lr: float
    """η_in, before the shortening by ``unforgotten_weight``."""
    outer_lr: float
    """η_out"""
    forget_loss: float | None
    """L_f, clamped if ``forget_margin`` is set."""
    retain_loss: float
    """L_r"""
    unforgotten_weight: float | None
    """See :func:`ofmu.methods.ofmu.loss.unforgotten_weight`. None without a ``forget_margin``."""
    similarity: float | None
    """S"""
    hinge_open: bool | None
    """Whether g_f was decorrelated from g_r."""
    phi_norm: float | None
    """‖∇Φ‖, the stationarity residual. With the decorrelation ``projection``: ‖p‖. Between the rounds of
    ``regularization_interval``: ‖g_f‖."""
    forget_gradient_norm: float | None
    """‖g_f‖"""
    retain_gradient_norm: float
    """‖g_r‖"""
    outer_norm: float
    """‖g_r + 2ρ∇²Φ∇Φ‖ before clipping."""
    penalty_weight: float
    """ρ_k"""
    inner_derivative_error: float | None
    """Estimated error of the last checked ∇Φ, relative to ‖∇Φ‖. None: there was no check since the last outer step."""
    outer_derivative_error: float | None
    """Estimated error of the outer direction from its product ∇²Φ·∇Φ, relative to the direction's norm. None: there was
    no check."""


@dataclass(frozen=True, kw_only=True)
class StoppedOuterRecord(OuterRecord):
    """What one outer step computed in a run with a ``min_forget_loss``."""

    measured_forget_loss: float | None
    """Mean of the L_f, not clamped, that the stop measured before each inner step. None: there is no inner step."""
    stop_weight: float | None
    """Mean of the weights w that the stop gave to the inner steps."""
    multiplier: float | None
    """λ after the inner loop. None: the stop is a switch."""


_RANGES_OF_PAPER: Mapping[str, Mapping[str, Any]] = {
    # Few rounds with all terms fit a budget. Without a margin ‖∇Φ‖ grows, and the penalty grows with its square.
    "penalty_weight": {"low": 1e-8, "high": 1e-4, "log": True},
    "outer_steps": {"low": 8, "high": 40, "log": True},
}
_SEPARATES = {"method.decorrelation": ["projection", "cosine"]}


@register("ofmu")
class OFMU(Method[RowT]):
    """Inner ascent of Φ = L_f − β·max(0, S − τ), with L_f clamped at δ, and outer descent of F = L_r + ρ‖∇Φ‖²."""

    Config = OfmuConfig
    title = "OFMU"
    source = "Asif & Amiri, arXiv 2509.22483, Algorithm 1"
    tasks = frozenset({"language", "vision"})
    # With few outer steps, no other setting undoes the damage of the ascent: docs/results.md, "What OFMU needs".
    space: ClassVar = {
        "decorrelation": {"choices": ["none", "projection", "cosine"]},
        # Without decorrelation a trial has no second-order term at all, so it costs a sixth to a tenth of the others.
        "penalty_weight": {"low": 1e-5, "high": 1e-2, "log": True, "when": _SEPARATES, "otherwise": 0.0},
        "similarity_weight": {"low": 1e-2, "high": 3.0, "log": True, "when": {"method.decorrelation": "cosine"}},
        "similarity_threshold": {"low": -0.5, "high": 0.5, "when": _SEPARATES},
        "regularization_interval": {"low": 4, "high": 16, "log": True, "when": _SEPARATES},
        "forget_margin": {"low": 1.0, "high": 5.0},
        "inner_steps": {"low": 1, "high": 4},
        "outer_steps": {"low": 12, "high": 60, "log": True},
        "inner_lr_scale": {"low": 0.25, "high": 4.0, "log": True},
        "outer_lr_scale": {"low": 0.4, "high": 2.5, "log": True},
    }
    published: ClassVar[Mapping[str, Any]] = PUBLISHED
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = VARIANTS
    no_op_config: ClassVar = {"outer_steps": 0}

    @classmethod
    def search_space(cls, variant: str | None = None) -> Mapping[str, Mapping[str, Any]]:
        """Return the default search space of the method, or of a variant: without settings that have no effect there.

        Raises:
            KeyError: there is no such variant.
        """
        ranges = {**cls.space, **_RANGES_OF_PAPER} if variant == "paper" else cls.space
        return without_settings(ranges, without_effect(variant))

    @classmethod
    def held_vectors(cls, config: OfmuConfig) -> HeldVectors:
        """Return the vectors of both loops."""
        return held_vectors(config)

    @classmethod
    def passes(cls, config: OfmuConfig, forget_rows: int, retain_rows: int) -> tuple[Passes, Passes]:
        """Return the passes with the hinge closed in every step, and with the hinge open in every step."""
        return passes(config)

    def __init__(self, context: Context[RowT], config: OfmuConfig) -> None:
        engine, task = context.engine, context.task
        self._engine, self._space, self._config, self._task = engine, engine.space, config, task
        forget_loss: Loss[RowT] = task.loss
        if config.forget_margin is not None:
            forget_loss = ClampedLoss(task.loss, config.forget_margin, config.forget_sharpness)
        derivatives = Derivatives(engine, forget_loss, task.loss, config)
        self._derivatives = CheckedDerivatives(derivatives, config, getattr(engine.model, "config", None))
        self._forget_sampler = context.minibatches(task.forget_rows, config, "forget")
        self._retain_sampler = context.minibatches(task.retain_rows, config, "retain")
        self._found_rates: Rates | None = None
        # The run sets the rates when it begins: a range test may have to find them.
        self._inner_optimizer = ShardOptimizer(self._space, config.inner_update, 0.0, ascend=True)
        self._outer_optimizer = ShardOptimizer(self._space, config.outer_update, 0.0, weight_decay=config.weight_decay)
        self._stop = ForgetStop(context, config) if config.has_forget_stop else None
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
            DerivativeError: the estimated error of a direction is too large.
            ConfigError: the config states no learning rate, and the range test finds none.
        """
        config, costs = self._config, self._engine.cost_tracker
        if config.outer_steps > 0:
            with costs.phase("inner"):
                self._outer_optimizer.lr = self._rates.outer
        while self._outer_steps < config.outer_steps and not self.stationary:
            self._derivatives.begin_outer_step(self._outer_steps)
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
            self.stationary = record.phi_norm is not None and self._is_stationary(record.phi_norm)
            yield record
        self._warn_if_never_decorrelated()

    @property
    def learning_rates(self) -> dict[str, float]:
        """Those of η_in and η_out, with their scales, that the config does not state; empty before the first round."""
        found = self._found_rates
        rates = {} if found is None else {"inner_lr": found.inner, "outer_lr": found.outer}
        return {name: rate for name, rate in rates.items() if getattr(self._config, name) is None}

    @property
    def _rates(self) -> Rates:
        """The learning rates. The first use finds them at the present parameters, which must be the target's."""
        if self._found_rates is None:
            task = self._task
            self._found_rates = find_rates(self._engine, self._config, task.loss, task.forget_rows, task.retain_rows)
        return self._found_rates

    def _is_stationary(self, phi_norm: float) -> bool:
        """Return whether the residual of the outer step just taken is within the tolerance."""
        config = self._config
        return config.ascends_phi(self._outer_steps - 1) and phi_norm <= config.stationarity_tolerance

    def _inner_step(self) -> None:
        """θ ← θ + w η_in ∇Φ(θ), on fresh minibatches. w is 1, or the weight of the stop. At w = 0, ∇Φ is not computed.

        Beside the outer step, which descends on L_r, an inner step with w is a step on the augmented Lagrangian of
        :mod:`ofmu.methods.forget_stop`.
        """
        forget_rows, retain_rows = self._forget_sampler.draw(), self._retain_sampler.draw()
        weight = 1.0 if self._stop is None else self._stop.next_weight(forget_rows)
        if weight == 0:
            return
        regularizes = self._config.regularizes(self._outer_steps)
        ascent = self._derivatives.ascent(forget_rows, retain_rows, decorrelates=regularizes)
        self._hinge_was_open |= ascent.hinge_open
        self._inner_optimizer.lr = weight * self._inner_lr(ascent.forget_loss)
        self._inner_optimizer.step(ascent.gradient, ascent.norm)

    def _inner_lr(self, forget_loss: float) -> float:
        """Return η_in, which is multiplied by the unforgotten weight for ``normalized`` and ``adamw``.

        The clamp of L_f shortens ∇Φ as the rows are forgotten. These two rules do not depend on the length of ∇Φ, so
        their rate must shrink instead.
        """
        weight = self._unforgotten_weight(forget_loss)
        if weight is None or self._config.inner_update == "sgd":
            return self._rates.inner
        return self._rates.inner * weight

    def _outer_step(self) -> OuterRecord:
        """θ ← θ − η_out (g_r + 2ρ_k ∇²Φ(θ)·∇Φ(θ)), on fresh minibatches, from where the inner loop ended."""
        forget_rows, retain_rows = self._forget_sampler.draw(), self._retain_sampler.draw()
        phi: PhiGradient[RowT] | None = None
        if self._config.computes_phi(self._outer_steps):
            regularizes = self._config.regularizes(self._outer_steps)
            phi = self._derivatives.phi_gradient(forget_rows, retain_rows, decorrelates=regularizes)
            self._hinge_was_open |= phi.hinge_open
            retain_loss, (direction, norm) = phi.point.retain_loss, self._outer_direction(phi)
            retain_norm = phi.point.similarity.retain_norm
        else:
            retain_loss, direction = self._derivatives.retain_gradient(retain_rows)
            norm = retain_norm = self._finite_norm(direction)
        self._outer_optimizer.step(direction, factor=clipping_factor(norm, self._config.max_grad_norm))
        self._outer_steps += 1
        record = self._record(phi, retain_loss, retain_norm, norm)
        self._increase_penalty()
        return record

    def _has_penalty(self) -> bool:
        """Whether this outer step descends on the penalty."""
        return self._penalty_weight > 0 and self._config.regularizes(self._outer_steps)

    def _outer_direction(self, phi: PhiGradient[RowT]) -> tuple[Vector, float]:
        """Return g_r + 2ρ_k ∇²Φ·∇Φ, or g_r in a round without penalty, and its norm.

        The direction uses up the gradients in ``phi``, to save vectors.
        """
        direction = phi.point.retain_gradient
        if not self._has_penalty():
            return direction, phi.point.similarity.retain_norm
        direction = self._derivatives.outer_direction(phi, direction, 2 * self._penalty_weight)
        return direction, self._finite_norm(direction)

    def _finite_norm(self, direction: Vector) -> float:
        norm = self._space.norm(direction)
        if not math.isfinite(norm):
            raise NonFiniteLossError(f"the norm of the outer direction became {norm}")
        return norm

    def _increase_penalty(self) -> None:
        """ρ_{k+1} = min(growth·ρ_k, cap)."""
        increased = self._penalty_weight * self._config.penalty_growth
        cap = self._config.penalty_max
        self._penalty_weight = increased if cap is None else min(increased, cap)

    def _unforgotten_weight(self, forget_loss: float) -> float | None:
        margin = self._config.forget_margin
        if margin is None:
            return None
        return unforgotten_weight(forget_loss, margin, self._config.forget_sharpness)

    def _record(
        self, phi: PhiGradient[RowT] | None, retain_loss: float, retain_norm: float, outer_norm: float
    ) -> OuterRecord:
        record = OuterRecord(
            outer_step=self._outer_steps,
            inner_lr=self._rates.inner,
            outer_lr=self._rates.outer,
            forget_loss=phi.point.forget_loss if phi else None,
            retain_loss=retain_loss,
            unforgotten_weight=self._unforgotten_weight(phi.point.forget_loss) if phi else None,
            similarity=phi.point.similarity.value if phi else None,
            hinge_open=phi.hinge_open if phi else None,
            phi_norm=phi.norm if phi else None,
            forget_gradient_norm=phi.point.similarity.forget_norm if phi else None,
            retain_gradient_norm=retain_norm,
            outer_norm=outer_norm,
            penalty_weight=self._penalty_weight,
            inner_derivative_error=self._derivatives.inner_error,
            outer_derivative_error=self._derivatives.outer_error,
        )
        if self._stop is None:
            return record
        return StoppedOuterRecord(**asdict(record), **asdict(self._stop.take_record()))

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
            "rates": asdict(self._found_rates) if self._found_rates else None,
            "penalty_weight": self._penalty_weight,
            "stationary": self.stationary,
            "hinge_was_open": self._hinge_was_open,
            "derivatives": self._derivatives.state(),
            "forget_stop": None if self._stop is None else self._stop.state(),
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
        self._found_rates = Rates(**state["rates"]) if state["rates"] else None
        self._penalty_weight = float(state["penalty_weight"])
        self.stationary = bool(state["stationary"])
        self._hinge_was_open = bool(state["hinge_was_open"])
        self._derivatives.restore(state["derivatives"])
        if self._stop is not None:
            self._stop.restore(state["forget_stop"])
        self._forget_sampler.position = int(state["forget_position"])
        self._retain_sampler.position = int(state["retain_position"])

    def _optimizers(self) -> dict[str, ShardOptimizer]:
        return {"inner": self._inner_optimizer, "outer": self._outer_optimizer}
