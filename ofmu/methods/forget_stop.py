r"""A stop of forgetting: the forget term acts while the mean loss L_f of the forget rows is below a level ℓ.

Forgetting is stated as a constraint: minimise f(θ) subject to L_f(θ) ≥ ℓ, where f is the retain term. The augmented
Lagrangian of Powell, Hestenes and Rockafellar (Nocedal & Wright, Numerical Optimization, 2nd ed., section 17.4) of the
constraint c(θ) = L_f(θ) − ℓ ≥ 0, with the multiplier λ ≥ 0 and the penalty parameter p > 0, is

    L_A(θ) = f(θ) + (max(0, λ − p·c(θ))² − λ²) / (2p),      ∇L_A = ∇f − w ∇L_f,      w = max(0, λ − p·c(θ)).

So w is the weight of the forget term −∇L_f. The setting ``stop_penalty`` is μ = p·ℓ, which has no unit: with λ = 0, the
weight falls along a line from μ at L_f = 0 to 0 at L_f = ℓ,

    w = max(0, λ + μ (1 − L_f/ℓ)).

After each step, λ ← max(0, λ + s (1 − L_f/ℓ)) with the step size s = ``multiplier_step``. With s = μ this is the update
of the textbook, λ ← w. The textbook minimises L_A between two updates. Here one step of the optimizer lies between
them, so a smaller s keeps λ from growing while the first steps are still on their way to ℓ. With s = 0, λ stays 0.

For gradient ascent and gradient difference, whose forget term is −∇L_f, a step follows ∇L_A. For the other methods,
the method's own forget term takes the place of −∇L_f, and w has the same meaning. A step with w = 0 computes no forget
term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from ofmu.config.base import NonNegativeFloat, PositiveFloat
from ofmu.errors import NonFiniteLossError
from ofmu.methods.base import Context
from ofmu.methods.config import MethodConfig

RowT = TypeVar("RowT")


class ForgetStopConfig(MethodConfig):
    """The settings of the stop, for methods whose forget term has a weight."""

    min_forget_loss: PositiveFloat | None = None
    """ℓ, in nats per answer token, or per image: a step forgets only while the mean loss L_f of its forget rows asks
    for it. The loss costs one forward pass per step. None: every step forgets."""
    forget_stop: Literal["lagrangian", "switch"] = "lagrangian"
    """How ``min_forget_loss`` ends the forgetting. ``lagrangian``: the forget term has the weight of an augmented
    Lagrangian, see :mod:`ofmu.methods.forget_stop`. ``switch``: a step with L_f ≥ ℓ has no forget term."""
    stop_penalty: PositiveFloat = 1.0
    """μ, the weight of the forget term at L_f = 0 before the multiplier has grown. Beside ``forget_weight``."""
    multiplier_step: NonNegativeFloat = 0.1
    """s, the step size of the multiplier λ. As large as ``stop_penalty``: the update of the textbook. 0: λ stays 0."""

    @property
    def has_forget_stop(self) -> bool:
        """Whether a stop acts on the forget term."""
        return self.min_forget_loss is not None

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that has no effect."""
        notes = super().ineffective()
        chosen: tuple[str, ...]
        if self.min_forget_loss is None:
            chosen, reason = ("forget_stop", "stop_penalty", "multiplier_step"), "method.min_forget_loss is not set"
        elif self.forget_stop == "switch":
            chosen, reason = ("stop_penalty", "multiplier_step"), "method.forget_stop is 'switch'"
        else:
            return notes
        fields = type(self).model_fields
        changed = [name for name in chosen if getattr(self, name) != fields[name].default]
        return notes + [f"method.{name} has no effect: {reason}" for name in changed]


@dataclass(frozen=True)
class StopState:
    """What the stop did since the last record."""

    measured_forget_loss: float | None
    """Mean of the measured L_f. None: nothing was measured."""
    stop_weight: float | None
    """Mean of the weights w. None: nothing was measured."""
    multiplier: float | None
    """λ after the last step. None: the stop is a switch, which has no multiplier."""


class ForgetStop(Generic[RowT]):
    """Measures L_f on the minibatches of the forget rows, and gives the weight of the forget term.

    The rows have the task's own answers, also where a method forgets by other answers. Each measurement costs one
    forward pass.

    Args:
        context: the inputs of the run.
        config: the settings, with a ``min_forget_loss``.
    """

    def __init__(self, context: Context[RowT], config: ForgetStopConfig) -> None:
        assert config.min_forget_loss is not None
        self._engine, self._loss = context.engine, context.task.loss
        self._config, self._level = config, config.min_forget_loss
        # The name of a method's own forget minibatches: both draw the same rows, if the method draws the task's own and
        # draws them once a step.
        self._sampler = context.minibatches(context.task.forget_rows, config, "forget")
        self.multiplier = 0.0
        """λ"""
        self._measured: list[tuple[float, float]] = []

    def next_weight(self, rows: Sequence[RowT] | None = None) -> float:
        """Return w for the next minibatch, and update λ; collective.

        Args:
            rows: the minibatch, if it is of the task's own rows. None: the stop draws a minibatch itself.

        Raises:
            NonFiniteLossError: L_f is NaN or infinite.
        """
        loss = self._measure(self._sampler.draw() if rows is None else rows)
        weight = self._weight(loss)
        self._measured.append((loss, weight))
        return weight

    def _weight(self, loss: float) -> float:
        config = self._config
        if config.forget_stop == "switch":
            return 1.0 if loss < self._level else 0.0
        missing = 1 - loss / self._level
        weight = max(0.0, self.multiplier + config.stop_penalty * missing)
        self.multiplier = max(0.0, self.multiplier + config.multiplier_step * missing)
        return weight

    def _measure(self, rows: Sequence[RowT]) -> float:
        """Return the mean loss of a minibatch: over answer tokens, or over images."""
        loss = self._loss
        tokens = sum(loss.tokens(row) for row in rows)
        means = self._engine.row_values(
            lambda module, part, device: [*loss.row_means(module, part, device)], rows, tokens
        )
        sizes = [loss.size(row) for row in rows]
        value = sum(mean * size for mean, size in zip(means, sizes, strict=True)) / sum(sizes)
        if not value < float("inf"):
            raise NonFiniteLossError(f"the loss of the forget rows became {value}")
        return value

    def take_record(self) -> StopState:
        """Return what happened since the last call, and begin the next record."""
        measured, self._measured = self._measured, []
        count = len(measured)
        return StopState(
            measured_forget_loss=sum(loss for loss, _ in measured) / count if measured else None,
            stop_weight=sum(weight for _, weight in measured) / count if measured else None,
            multiplier=None if self._config.forget_stop == "switch" else self.multiplier,
        )

    def state(self) -> dict[str, Any]:
        """Return λ and the position of the minibatches as JSON values."""
        return {"multiplier": self.multiplier, "position": self._sampler.position}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the result of :meth:`state`."""
        self.multiplier, self._sampler.position = float(state["multiplier"]), int(state["position"])
