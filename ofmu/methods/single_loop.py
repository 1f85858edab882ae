"""Methods of one loop: θ ← optimizer(θ, γ∇L_forget + α∇L_retain), on fresh minibatches of both sets."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from ofmu.config.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from ofmu.data.sampler import MinibatchSampler
from ofmu.errors import NonFiniteLossError
from ofmu.finetuning.loop import rate_factor
from ofmu.losses import Loss
from ofmu.methods.base import Context, Method
from ofmu.methods.config import MethodConfig
from ofmu.vectors.base import Vector
from ofmu.vectors.optimizers import ShardOptimizer

RowT = TypeVar("RowT")


class SingleLoopConfig(MethodConfig):
    """What the methods of one loop share."""

    steps: NonNegativeInt = 60
    """Optimizer steps; 0 leaves the target untouched."""
    lr: PositiveFloat = 1e-4
    update: Literal["adamw", "sgd"] = "adamw"
    weight_decay: NonNegativeFloat = 0.0
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps in which the rate rises linearly."""
    decay: bool = False
    """True: after the warm-up the rate falls linearly to a tenth."""
    max_grad_norm: PositiveFloat | None = None
    forget_weight: NonNegativeFloat = 1.0
    """γ"""
    retain_weight: NonNegativeFloat = 1.0
    """α"""
    round_steps: PositiveInt = 5
    """Steps from one report, and one chance of a checkpoint, to the next."""

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that a run under these will ignore."""
        if self.update == "sgd" and self.weight_decay > 0:
            return ["method.weight_decay has no effect: the update 'sgd' applies none"]
        return []


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one round of steps saw: means over its minibatches, each before its step was taken."""

    outer_step: int
    """Steps taken so far."""
    forget_loss: float | None
    """The method's own L_forget; None where it has none."""
    retain_loss: float | None
    direction_norm: float
    """Norm of the round's last direction, before clipping."""
    lr: float


@dataclass
class Direction:
    """One minibatch's descent direction and the losses it was made of."""

    vector: Vector
    forget_loss: float | None
    retain_loss: float | None


SINGLE_LOOP_SPACE: dict[str, dict[str, Any]] = {
    "lr": {"low": 1e-5, "high": 3e-3, "log": True},
    "steps": {"low": 10, "high": 80, "log": True},
    "retain_weight": {"low": 0.3, "high": 10.0, "log": True},
}
"""What is searched of every method of one loop; rates from those of billion-parameter models to tiny ones."""


class SingleLoopMethod(Method[RowT]):
    """A method that is one loss of the forget rows, one of the retain rows, and an optimizer.

    Subclasses give the losses; those that combine gradients otherwise override :meth:`direction`.
    """

    tasks = frozenset({"language", "vision"})
    space: ClassVar = SINGLE_LOOP_SPACE
    published: ClassVar = {}

    def __init__(self, context: Context[RowT], settings: SingleLoopConfig) -> None:
        self.context, self.settings = context, settings
        self.engine, self.task = context.engine, context.task
        self.optimizer = ShardOptimizer(
            self.engine.space, settings.update, settings.lr, weight_decay=settings.weight_decay
        )
        size, seed = settings.batch_size, context.seed
        self._forget_sampler = MinibatchSampler(self.forget_rows(), size, seed, "forget")
        self._retain_sampler = MinibatchSampler(context.task.retain_rows, size, seed, "retain")
        self._steps = 0

    def forget_rows(self) -> Sequence[RowT]:
        """Return the rows from which forget minibatches are drawn."""
        return self.task.forget_rows

    @abstractmethod
    def forget_loss(self, rows: Sequence[RowT]) -> Loss[RowT] | None:
        """Return L_forget for a global minibatch, after what it needs of the start model was computed; collective."""

    def retain_loss(self, rows: Sequence[RowT]) -> Loss[RowT] | None:
        """Return L_retain for a global minibatch: the task's own loss, unless a method says otherwise."""
        return self.task.loss

    def weights(self) -> tuple[float, float]:
        """Return γ and α for the next step."""
        return self.settings.forget_weight, self.settings.retain_weight

    def direction(self) -> Direction:
        """Return γ∇L_forget + α∇L_retain on fresh minibatches; a loss without weight costs nothing."""
        total = self.engine.space.zeros()
        gamma, alpha = self.weights()
        rows = self._forget_sampler.draw()
        forget = self.add_gradient(self.forget_loss(rows) if gamma else None, rows, total, gamma)
        rows = self._retain_sampler.draw()
        retain = self.add_gradient(self.retain_loss(rows) if alpha else None, rows, total, alpha)
        return Direction(total, forget, retain)

    def add_gradient(self, loss: Loss[RowT] | None, rows: Sequence[RowT], into: Vector, weight: float) -> float | None:
        """Add ``weight`` times the loss's gradient to ``into`` and return its value."""
        return None if loss is None else self.engine.gradient(loss, rows, into=into, scale=weight)[0]

    def after_step(self, direction: Direction) -> None:
        """Hear of a step that was taken; dual variables and masks move here."""

    @property
    def steps_taken(self) -> int:
        """Optimizer steps taken so far."""
        return self._steps

    @property
    def total_rounds(self) -> int:
        """Rounds of ``round_steps`` steps, the last of which may be shorter."""
        return math.ceil(self.settings.steps / self.settings.round_steps)

    def rounds(self) -> Iterator[StepRecord]:
        """Take the remaining steps, yielding every ``round_steps`` of them and after the last.

        Raises:
            NonFiniteLossError: a loss or the direction's norm is NaN or infinite.
        """
        settings = self.settings
        while self._steps < settings.steps:
            taken = min(settings.round_steps - self._steps % settings.round_steps, settings.steps - self._steps)
            with self.engine.cost_tracker.phase("outer"):
                found = [self._step() for _ in range(taken)]
            directions = [direction for direction, _ in found]
            yield StepRecord(
                outer_step=self._steps,
                forget_loss=_mean([direction.forget_loss for direction in directions]),
                retain_loss=_mean([direction.retain_loss for direction in directions]),
                direction_norm=found[-1][1],
                lr=self.optimizer.lr,
            )

    def _step(self) -> tuple[Direction, float]:
        settings, space = self.settings, self.engine.space
        try:
            direction = self.direction()
            norm = space.norm(direction.vector)
            if not math.isfinite(norm):
                raise NonFiniteLossError(f"the norm of the direction became {norm}")
        except NonFiniteLossError as error:
            raise NonFiniteLossError(
                f"Step {self._steps + 1} of {settings.steps} failed, {error}: lower method.lr, forget_weight or steps"
            ) from error
        vector = direction.vector
        if settings.max_grad_norm is not None and norm > settings.max_grad_norm:
            vector = space.combine((settings.max_grad_norm / norm, vector))
        self.optimizer.lr = settings.lr * self._rate()
        self.optimizer.step(vector, norm)
        self._steps += 1
        self.after_step(direction)
        return Direction([], direction.forget_loss, direction.retain_loss), norm

    def _rate(self) -> float:
        settings = self.settings
        warmup = math.ceil(settings.steps * settings.warmup_fraction)
        if settings.decay or self._steps < warmup:
            return rate_factor(self._steps, settings.steps, settings.warmup_fraction)
        return 1.0

    def extra_state(self) -> dict[str, Any]:
        """Return what a method keeps beyond the loop's position, as JSON values."""
        return {}

    def restore_extra(self, state: dict[str, Any]) -> None:
        """Take :meth:`extra_state` back."""

    def state(self) -> dict[str, Any]:
        """Return the loop's position and samplers as JSON values."""
        return {
            "steps": self._steps,
            "forget_position": self._forget_sampler.position,
            "retain_position": self._retain_sampler.position,
            "optimizer_steps": self.optimizer.steps,
            "extra": self.extra_state(),
        }

    def vectors(self) -> dict[str, Vector]:
        """Return the parameters and the optimizer's moments, live, by name."""
        return {"theta": self.engine.space.masters(), **self.optimizer.vectors()}

    def restore(self, state: dict[str, Any], vectors: dict[str, Vector]) -> None:
        """Continue from a checkpoint as if nothing had happened."""
        self.engine.space.restore(vectors["theta"])
        moments = {name: vector for name, vector in vectors.items() if name != "theta"}
        self.optimizer.restore(int(state["optimizer_steps"]), moments)
        self._steps = int(state["steps"])
        self._forget_sampler.position = int(state["forget_position"])
        self._retain_sampler.position = int(state["retain_position"])
        self.restore_extra(state["extra"])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
