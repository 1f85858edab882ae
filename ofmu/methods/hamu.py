r"""HAMU: each step improves one objective by a given amount, at the least cost to the other objective.

To first order a step v·η changes L_f by η<g_f, v> and L_r by η<g_r, v>. HAMU takes

    v = argmin <g_r, v>   subject to   <g_f, v> ≥ c,   ‖v‖ ≤ ‖g_r‖.

With κ = <g_r, g_f>, the hardness of the step, and g_⊥ = g_r − (κ/‖g_f‖²) g_f, the solution is

    v = −g_r                                                            if κ ≤ −c: the retain step alone forgets enough
    v = (c/‖g_f‖²) g_f − √(‖g_r‖² − c²/‖g_f‖²) g_⊥/‖g_⊥‖                  otherwise
    v = (c/‖g_f‖²) g_f                                                  if ‖g_r‖·‖g_f‖ < c: no short step forgets enough

In the second case <g_r, v> > 0 if and only if κ > κ₂ = √(‖g_r‖²‖g_f‖² − c²): L_r must rise.

The norms, κ and the constraint are those of the whole vectors. The authors' code has the same formula (``full_grad``),
and by default applies it to each weight tensor with a part of the constraint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

from ofmu.config.base import PositiveFloat
from ofmu.losses import Loss
from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.single_loop import (
    LR_AND_STEPS_SPACE,
    Direction,
    SingleLoopConfig,
    SingleLoopMethod,
    StepRecord,
)
from ofmu.vectors.held import HeldVectors, Passes

RowT = TypeVar("RowT")


class HamuConfig(SingleLoopConfig):
    """The settings of HAMU."""

    own_direction: ClassVar[bool] = True
    name: Literal["hamu"] = "hamu"
    """Selects HAMU."""
    improvement: PositiveFloat = 0.5
    """c: a step shall raise L_f by lr·c nats, to first order and before AdamW scales it. With ``priority`` 'retain', it
    shall lower L_r by as much."""
    priority: Literal["forget", "retain"] = "forget"
    """``forget`` (HAMU-Q): the constraint is on L_f, and L_r is kept as low as it allows. ``retain`` (HAMU-U): the
    constraint is on L_r, and L_f is raised as far as it allows."""
    stop_when_unavoidable: bool = False
    """True: the run ends after the first step at which the constraint cannot be met without harm to the other
    objective, κ > κ₂."""

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that has no effect."""
        reason = "method.improvement and method.priority decide what a step does"
        weights = [name for name in ("forget_weight", "retain_weight") if getattr(self, name) != 1]
        return super().ineffective() + [f"method.{name} has no effect: {reason}" for name in weights]


@dataclass(frozen=True, kw_only=True)
class HamuRecord(StepRecord):
    """The record of one round."""

    hardness: float
    """κ = <g_r, g_f> of the last step."""
    hardness_limit: float | None
    """κ₂ of the last step. None: no step that is as short as the gradient meets the constraint."""


@dataclass(frozen=True)
class Step:
    """v = ``of_kept``·g_r + ``of_improved``·g_f, for g_f of the objective with the constraint and g_r of the other."""

    of_kept: float
    of_improved: float
    limit: float | None
    """κ₂; None: the constraint cannot be met."""


def hamu_step(kept_square: float, improved_square: float, product: float, improvement: float) -> Step:
    """Return the solution of the problem above.

    Args:
        kept_square: ‖g_r‖².
        improved_square: ‖g_f‖².
        product: κ.
        improvement: c.
    """
    c, below = improvement, kept_square * improved_square - improvement**2
    if improved_square == 0:
        return Step(0.0, 0.0, None)
    along = c / improved_square
    if below < 0:
        return Step(0.0, along, None)
    limit = math.sqrt(below)
    if product <= -c:
        return Step(-1.0, 0.0, limit)
    across_square = max(0.0, kept_square - product**2 / improved_square)
    if across_square == 0:
        return Step(0.0, along, limit)
    length = math.sqrt(max(0.0, kept_square - c**2 / improved_square) / across_square)
    return Step(-length, along + length * product / improved_square, limit)


@register("hamu")
class HAMU(SingleLoopMethod[RowT]):
    """v = argmin <g_r, v> s.t. <g_f, v> ≥ c, ‖v‖ ≤ ‖g_r‖, and θ ← θ + ηv, or the update rule along v.

    κ = <g_r, g_f> decides between the retain step and the step that trades both gradients, and may end the run.
    """

    Config: ClassVar[type[SingleLoopConfig]] = HamuConfig
    title = "HAMU"
    source = "Chen et al., arXiv 2606.02119; formula of the authors' code (compute_hamu_update, full_grad)"
    space: ClassVar = LR_AND_STEPS_SPACE | {"improvement": {"low": 0.01, "high": 10.0, "log": True}}
    published: ClassVar = {"improvement": 0.5, "update": "sgd", "lr": 1e-4, "max_grad_norm": 1.0}
    config: HamuConfig

    @classmethod
    def held_vectors(cls, config: Any) -> HeldVectors:
        """Return the vectors of one loop; the direction is made from g_f and g_r."""
        return replace(super().held_vectors(config), in_pass=2, between=3)

    @classmethod
    def passes(cls, config: Any, forget_rows: int, retain_rows: int) -> tuple[Passes, Passes]:
        """Return one gradient evaluation of each loss per step. A run that stops takes at least one step."""
        step = Passes(forget=1, retain=1)
        least = min(1, config.steps) if config.stop_when_unavoidable else config.steps
        return step * least, step * config.steps

    def __init__(self, context: Context[RowT], config: HamuConfig) -> None:
        super().__init__(context, config)
        self._hardness: tuple[float, float | None] = (0.0, None)

    def forget_loss(self, rows: Sequence[RowT]) -> Loss[RowT]:
        """Return L_f, which the step raises."""
        return self.task.loss

    def direction(self) -> Direction:
        """Return −v."""
        engine, space, config = self.engine, self.engine.space, self.config
        rows = self._forget_sampler.draw()
        forget_loss, g_f = engine.gradient(self.task.loss, rows)
        rows = self._retain_sampler.draw()
        retain_loss, g_r = engine.gradient(self.task.loss, rows)
        ff, rr, product = space.dots((g_f, g_f), (g_r, g_r), (g_f, g_r))
        if config.priority == "forget":
            step = hamu_step(rr, ff, product, config.improvement)
            terms = (-step.of_kept, g_r), (-step.of_improved, g_f)
        else:
            # Lowering L_r is raising −L_r, and raising L_f is lowering −L_f. κ is the same.
            step = hamu_step(ff, rr, product, config.improvement)
            terms = (step.of_kept, g_f), (step.of_improved, g_r)
        self._hardness = (product, step.limit)
        if config.stop_when_unavoidable:
            self.stationary = step.limit is None or product > step.limit
        return Direction(space.combine(*terms), forget_loss, retain_loss)

    def make_record(self, taken: Sequence[Any]) -> StepRecord:
        """Return the record of a round, with the hardness of its last step."""
        hardness, limit = self._hardness
        return HamuRecord(**asdict(super().make_record(taken)), hardness=hardness, hardness_limit=limit)

    def extra_state(self) -> dict[str, Any]:
        """Return whether the run has ended."""
        return {"stationary": self.stationary}

    def restore_extra(self, state: dict[str, Any]) -> None:
        """Restore whether the run has ended."""
        self.stationary = bool(state["stationary"])
