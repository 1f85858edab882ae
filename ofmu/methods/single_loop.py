"""Methods with one loop: θ ← optimizer(θ, γ∇L_forget + α∇L_retain), on fresh minibatches of both sets."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from ofmu.config.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from ofmu.errors import NonFiniteLossError
from ofmu.finetuning.loop import rate_factor
from ofmu.losses import Loss
from ofmu.methods.base import Context, Method
from ofmu.methods.forget_stop import ForgetStop, ForgetStopConfig
from ofmu.vectors.base import Vector
from ofmu.vectors.held import HeldVectors, Passes
from ofmu.vectors.optimizers import ShardOptimizer, clipping_factor, has_moments, moments_of

RowT = TypeVar("RowT")


class SingleLoopConfig(ForgetStopConfig):
    """The settings that all methods with one loop share."""

    steps: NonNegativeInt = 60
    """Optimizer steps. 0: the target stays as it is."""
    lr: PositiveFloat = 1e-4
    """η, the learning rate."""
    update: Literal["adamw", "adamw_8bit", "sgd"] = "adamw"
    """The rule of a step. ``sgd``: θ − ηd for the direction d. ``adamw``: AdamW on d. ``adamw_8bit``: AdamW with
    moments in 8 bits, which take 2 bytes a parameter instead of 8."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of ``adamw``."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps in which the learning rate rises linearly to ``lr``."""
    decay: bool = False
    """True: after the warm-up, the learning rate falls linearly to a tenth of ``lr``."""
    max_grad_norm: PositiveFloat | None = None
    """The norm to which the direction is clipped. None: no clipping."""
    forget_weight: NonNegativeFloat = 1.0
    """γ, the weight of L_forget. At 0, L_forget is not computed."""
    retain_weight: NonNegativeFloat = 1.0
    """α, the weight of L_retain. At 0, L_retain is not computed."""
    conflict: Literal["keep", "project"] = "keep"
    """What a step does where forgetting raises L_retain to first order, <∇L_forget, ∇L_retain> < 0. ``project``: the
    part of ∇L_forget along ∇L_retain is removed (GRU, arXiv 2503.09117, here with the gradient of the minibatch)."""
    separate_moments: bool = False
    """True: AdamW keeps moments for each of the two losses, and a step is the sum of two updates (DualOptim, arXiv
    2504.15827). False: one update follows the sum of the gradients."""
    round_steps: PositiveInt = 5
    """Steps per round. After each round, a record is written, and a checkpoint may be."""

    own_direction: ClassVar[bool] = False
    """Whether the method combines the two gradients in a way of its own."""

    @property
    def keeps_parts(self) -> bool:
        """Whether a step needs the gradients of the two losses apart."""
        both = 0 not in (self.forget_weight, self.retain_weight) and not self.own_direction
        return both and (self.conflict == "project" or self.has_separate_moments)

    @property
    def has_separate_moments(self) -> bool:
        """Whether the rule has moments, and keeps them for each loss."""
        return self.separate_moments and has_moments(self.update)

    @property
    def has_forget_stop(self) -> bool:
        """Whether a stop acts on the forget term."""
        return super().has_forget_stop and self.forget_weight > 0 and not self.own_direction

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that has no effect."""
        notes = super().ineffective()
        if self.update == "sgd" and self.weight_decay > 0:
            notes.append("method.weight_decay has no effect: the update 'sgd' has no weight decay")
        if self.update == "sgd" and self.separate_moments:
            notes.append("method.separate_moments has no effect: the update 'sgd' has no moments")
        chosen = {"conflict": self.conflict == "project", "separate_moments": self.has_separate_moments}
        if not self.keeps_parts:
            reason = "the method combines the two gradients in its own way"
            if 0 in (self.forget_weight, self.retain_weight):
                alone = "forget_weight" if self.forget_weight == 0 else "retain_weight"
                reason = f"method.{alone} is 0"
            notes += [f"method.{name} has no effect: {reason}" for name, used in chosen.items() if used]
        if self.min_forget_loss is not None and not self.has_forget_stop:
            reason = "the method's forget term has no weight of its own"
            if self.forget_weight == 0:
                reason = "method.forget_weight is 0"
            notes.append(f"method.min_forget_loss has no effect: {reason}")
        return notes


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The record of one round. A loss is the mean over the minibatches of the round, each before its step."""

    outer_step: int
    """Number of steps taken."""
    forget_loss: float | None
    """L_forget as the method defines it. None: the method computed no L_forget."""
    retain_loss: float | None
    """L_retain as the method defines it. None: the method computed no L_retain."""
    direction_norm: float
    """Norm of the last direction of the round, before clipping."""
    lr: float
    """Learning rate of the last step."""


@dataclass(frozen=True, kw_only=True)
class StoppedStepRecord(StepRecord):
    """The record of one round of a run with a ``min_forget_loss``."""

    measured_forget_loss: float | None
    """Mean of L_f, the loss of the forget rows, which the stop measured before each step."""
    stop_weight: float | None
    """Mean over the steps of the weight w that the stop gave to the forget term."""
    multiplier: float | None
    """λ after the round. None: the stop is a switch."""


@dataclass
class Direction:
    """The descent direction of one step, and the losses on the minibatches of the step."""

    vector: Vector
    forget_loss: float | None
    """None: the method computed no L_forget."""
    retain_loss: float | None
    """None: the method computed no L_retain."""
    retain_vector: Vector | None = None
    """The part of L_retain, if it has moments of its own. ``vector`` is then the part of L_forget."""


_RETAIN = "retain_"
"""Before the names of the moments of L_retain in a checkpoint."""

SINGLE_LOOP_SPACE: dict[str, dict[str, Any]] = {
    "lr": {"low": 1e-5, "high": 3e-3, "log": True},
    "steps": {"low": 10, "high": 80, "log": True},
    "retain_weight": {"low": 0.3, "high": 10.0, "log": True},
}
"""The search space of a method with one loop. The rates suit tiny models and models with billions of parameters."""
LR_AND_STEPS_SPACE = {name: SINGLE_LOOP_SPACE[name] for name in ("lr", "steps")}
"""The search space of a method with only one loss, where there are no two weights to balance."""


class SingleLoopMethod(Method[RowT]):
    """A method with a loss on the forget rows, a loss on the retain rows, and an optimizer.

    A subclass defines :meth:`forget_loss`, and may define :meth:`retain_loss`. A subclass that combines the gradients
    in another way overrides :meth:`direction`.
    """

    tasks = frozenset({"language", "vision"})
    uses_forget_loss: ClassVar[bool] = True
    """Whether the method has an L_forget."""
    space: ClassVar = SINGLE_LOOP_SPACE
    published: ClassVar = {}

    @classmethod
    def held_vectors(cls, config: Any) -> HeldVectors:
        """Return the moments, and the direction."""
        moments, parts = moments_of(config.update), config.keeps_parts
        kept = 2 * moments if parts and config.has_separate_moments else moments
        return HeldVectors(kept=kept, in_pass=2 if parts else 1, between=2 if parts else 1)

    @classmethod
    def passes(cls, config: Any, forget_rows: int, retain_rows: int) -> tuple[Passes, Passes]:
        """Return one gradient evaluation of each loss with a weight, per step. A stop may save those of L_forget."""
        forget, retain = cls.uses_forget_loss and config.forget_weight > 0, config.retain_weight > 0
        stop = forget and config.has_forget_stop
        most = Passes(forget=int(forget), retain=int(retain), forget_forward=int(stop)) * config.steps
        return replace(most, forget=0) if stop else most, most

    def __init__(self, context: Context[RowT], config: SingleLoopConfig) -> None:
        self.context, self.config = context, config
        self.engine, self.task = context.engine, context.task
        self.optimizer = ShardOptimizer(self.engine.space, config.update, config.lr, weight_decay=config.weight_decay)
        self._retain_optimizer: ShardOptimizer | None = None
        if config.keeps_parts and config.has_separate_moments:
            # The other optimizer decays the weights.
            self._retain_optimizer = ShardOptimizer(self.engine.space, config.update, config.lr)
        self._forget_sampler = context.minibatches(self.forget_rows(), config, "forget")
        self._retain_sampler = context.minibatches(context.task.retain_rows, config, "retain")
        self._stop: ForgetStop[RowT] | None = None
        if self.uses_forget_loss and config.has_forget_stop:
            self._stop = ForgetStop(context, config)
        self._steps = 0

    def forget_rows(self) -> Sequence[RowT]:
        """Return the rows from which the forget minibatches are drawn."""
        return self.task.forget_rows

    @abstractmethod
    def forget_loss(self, rows: Sequence[RowT]) -> Loss[RowT] | None:
        """Return L_forget for a global minibatch; collective. None: the method has no L_forget.

        A method that compares with the target runs the target here.
        """

    def retain_loss(self, rows: Sequence[RowT]) -> Loss[RowT] | None:
        """Return L_retain for a global minibatch; collective. The default is L_r."""
        return self.task.loss

    def weights(self) -> tuple[float, float]:
        """Return γ and α of the next step."""
        return self.config.forget_weight, self.config.retain_weight

    def _weights_now(self) -> tuple[float, float]:
        """Return γ and α of this step; γ is multiplied by the weight of the stop, which measures L_f."""
        gamma, alpha = self.weights()
        return (gamma if self._stop is None else gamma * self._stop.next_weight()), alpha

    def direction(self) -> Direction:
        """Return γ∇L_forget + α∇L_retain on fresh minibatches. A loss of weight 0 is not computed.

        With ``conflict: project`` the part of γ∇L_forget that raises L_retain is removed. With ``separate_moments`` the
        two parts stay apart. With a ``min_forget_loss``, γ is multiplied by the weight of the stop.
        """
        if self.config.keeps_parts:
            return self._direction_of_parts()
        total = self.engine.space.gradient_zeros()
        gamma, alpha = self._weights_now()
        rows = self._forget_sampler.draw()
        forget_loss = self.add_gradient(self.forget_loss(rows) if gamma else None, rows, total, gamma)
        rows = self._retain_sampler.draw()
        retain_loss = self.add_gradient(self.retain_loss(rows) if alpha else None, rows, total, alpha)
        return Direction(total, forget_loss, retain_loss)

    def _direction_of_parts(self) -> Direction:
        space, (gamma, alpha) = self.engine.space, self._weights_now()
        forget, retain = space.gradient_zeros(), space.gradient_zeros()
        rows = self._forget_sampler.draw()
        forget_loss = self.add_gradient(self.forget_loss(rows) if gamma else None, rows, forget, gamma)
        rows = self._retain_sampler.draw()
        retain_loss = self.add_gradient(self.retain_loss(rows), rows, retain, alpha)
        if self.config.conflict == "project":
            product, square = space.dots((forget, retain), (retain, retain))
            if product < 0:
                space.add(forget, retain, -product / square)
        if self._retain_optimizer is not None:
            return Direction(forget, forget_loss, retain_loss, retain)
        space.add(forget, retain, 1.0)
        return Direction(forget, forget_loss, retain_loss)

    def add_gradient(self, loss: Loss[RowT] | None, rows: Sequence[RowT], into: Vector, weight: float) -> float | None:
        """Add ``weight`` times the gradient of ``loss`` to ``into``. Return the value of ``loss``."""
        return None if loss is None else self.engine.gradient(loss, rows, into=into, scale=weight)[0]

    def on_step_end(self, direction: Direction) -> None:
        """Update what the method keeps beside the parameters, such as a dual variable. Called after each step."""

    @property
    def steps_taken(self) -> int:
        """Number of optimizer steps taken."""
        return self._steps

    @property
    def total_rounds(self) -> int:
        """Number of rounds. The last round may have fewer than ``round_steps`` steps."""
        return math.ceil(self.config.steps / self.config.round_steps)

    def rounds(self) -> Iterator[StepRecord]:
        """Take the remaining steps, or those until ``stationary``. Yield after ``round_steps`` steps, and at the end.

        Raises:
            NonFiniteLossError: a loss or the norm of the direction is NaN or infinite. The message names the step.
        """
        config = self.config
        while self._steps < config.steps and not self.stationary:
            count = min(config.round_steps - self._steps % config.round_steps, config.steps - self._steps)
            with self.engine.cost_tracker.phase("outer"):
                taken = [self._step()]
                while len(taken) < count and not self.stationary:
                    taken.append(self._step())
            yield self.make_record(taken)

    def make_record(self, taken: Sequence[_Step]) -> StepRecord:
        """Return the record of a round of these steps."""
        record = StepRecord(
            outer_step=self._steps,
            forget_loss=_mean([step.forget_loss for step in taken]),
            retain_loss=_mean([step.retain_loss for step in taken]),
            direction_norm=taken[-1].direction_norm,
            lr=self.optimizer.lr,
        )
        if self._stop is None:
            return record
        return StoppedStepRecord(**asdict(record), **asdict(self._stop.take_record()))

    def _step(self) -> _Step:
        config = self.config
        direction, norm = self._finite_direction()
        self.optimizer.lr = config.lr * self._rate_factor()
        factor = clipping_factor(norm, config.max_grad_norm)
        self.optimizer.step(direction.vector, norm, factor=factor)
        if self._retain_optimizer is not None and direction.retain_vector is not None:
            self._retain_optimizer.lr = self.optimizer.lr
            self._retain_optimizer.step(direction.retain_vector, norm, factor=factor)
        self._steps += 1
        self.on_step_end(direction)
        return _Step(direction.forget_loss, direction.retain_loss, norm)

    def _finite_direction(self) -> tuple[Direction, float]:
        """Return the direction and its norm."""
        try:
            direction = self.direction()
            norm = self._norm_of(direction)
            if not math.isfinite(norm):
                raise NonFiniteLossError(f"the norm of the direction became {norm}")
        except NonFiniteLossError as error:
            raise NonFiniteLossError(
                f"Step {self._steps + 1} of {self.config.steps} failed because {error}: "
                "lower method.lr, forget_weight or steps"
            ) from error
        return direction, norm

    def _norm_of(self, direction: Direction) -> float:
        space = self.engine.space
        if direction.retain_vector is None:
            return space.norm(direction.vector)
        return space.norm_of_sum((1.0, direction.vector), (1.0, direction.retain_vector))

    def _rate_factor(self) -> float:
        """Return the learning rate of the next step as a multiple of ``lr``."""
        config = self.config
        warmup_steps = math.ceil(config.steps * config.warmup_fraction)
        if config.decay or self._steps < warmup_steps:
            return rate_factor(self._steps, config.steps, config.warmup_fraction)
        return 1.0

    def extra_state(self) -> dict[str, Any]:
        """Return the state of a subclass as JSON values. :meth:`restore_extra` gets the result back."""
        return {}

    def restore_extra(self, state: dict[str, Any]) -> None:
        """Restore the result of :meth:`extra_state`."""

    def state(self) -> dict[str, Any]:
        """Return the number of steps, the positions of the samplers and the extra state as JSON values."""
        return {
            "steps": self._steps,
            "forget_position": self._forget_sampler.position,
            "retain_position": self._retain_sampler.position,
            "optimizer_steps": self.optimizer.steps,
            "retain_optimizer_steps": 0 if self._retain_optimizer is None else self._retain_optimizer.steps,
            "forget_stop": None if self._stop is None else self._stop.state(),
            "extra": self.extra_state(),
        }

    def vectors(self) -> dict[str, Vector]:
        """Return the parameters and the moments of the optimizer by name. These are the live tensors, no copies."""
        apart = {} if self._retain_optimizer is None else self._retain_optimizer.vectors()
        moments = {**self.optimizer.vectors(), **{f"{_RETAIN}{name}": vector for name, vector in apart.items()}}
        return {"theta": self.engine.space.masters(), **moments}

    def restore(self, state: dict[str, Any], vectors: dict[str, Vector]) -> None:
        """Continue from a checkpoint, bit for bit as the interrupted run would have continued."""
        self.engine.space.restore(vectors["theta"])
        moments = {name: vector for name, vector in vectors.items() if name != "theta"}
        apart = {name: moments.pop(name) for name in list(moments) if name.startswith(_RETAIN)}
        self.optimizer.restore(int(state["optimizer_steps"]), moments)
        if self._retain_optimizer is not None:
            named = {name.removeprefix(_RETAIN): vector for name, vector in apart.items()}
            self._retain_optimizer.restore(int(state["retain_optimizer_steps"]), named)
        self._steps = int(state["steps"])
        self._forget_sampler.position = int(state["forget_position"])
        self._retain_sampler.position = int(state["retain_position"])
        if self._stop is not None:
            self._stop.restore(state["forget_stop"])
        self.restore_extra(state["extra"])


@dataclass(frozen=True)
class _Step:
    """A step without its vector, which would keep the memory of a direction per step of the round."""

    forget_loss: float | None
    retain_loss: float | None
    direction_norm: float


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
