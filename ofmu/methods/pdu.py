"""PDU: forgetting as a constrained problem, which primal and dual steps solve in alternation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ofmu.config.base import NonNegativeFloat, PositiveFloat
from ofmu.data.collate import IGNORE_INDEX
from ofmu.data.rows import Example
from ofmu.losses import AnswerTokenMean, answer_logits
from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE, Direction, SingleLoopConfig, SingleLoopMethod
from ofmu.methods.token_losses import TextTask, answer_nll_per_row
from ofmu.vectors.held import Passes

MEASURED_ROWS = 128
"""Maximum number of retain rows on which the target's loss is measured if the config gives no ``epsilon``."""


class PduConfig(SingleLoopConfig):
    """The settings of PDU."""

    own_direction: ClassVar[bool] = True
    name: Literal["pdu"] = "pdu"
    """Selects PDU."""
    retain_weight: NonNegativeFloat = 100.0
    """α_0, the initial value of the dual variable."""
    dual_step: PositiveFloat = 5.0
    """s, the step size of the dual variable."""
    epsilon: PositiveFloat | None = None
    """ε, the largest allowed retain loss in nats per token. None: (1 + ``tolerance``) times the target's loss."""
    tolerance: NonNegativeFloat = 0.5
    """Share by which the retain loss may exceed the target's. No effect if ``epsilon`` is set."""

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that has no effect."""
        notes = super().ineffective()
        if self.epsilon is not None and self.tolerance != type(self).model_fields["tolerance"].default:
            notes.append("method.tolerance has no effect: method.epsilon is set")
        return notes


class FlatteningLoss(AnswerTokenMean):
    """(max_v z_v − mean_v z_v)² of the logits z, averaged over the answer tokens of the global minibatch.

    The loss is 0 if all logits are equal, so the minimum is a uniform distribution. If several tokens share the
    maximum, the gradient is split among them.
    """

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the sum over the answer tokens of the rows."""
        logits, labels = answer_logits(module, rows, self.pad_id, device)
        margins = logits.amax(-1) - logits.mean(-1)
        return margins.square().masked_fill(labels == IGNORE_INDEX, 0.0).sum()


@register("pdu")
class PDU(SingleLoopMethod[Example]):
    """min L_f = mean (max_v z − mean_v z)² s.t. L_r ≤ ε, by descent of γL_f + αL_r and α ← max(0, α + s(L_r − ε)).

    L_r in the dual step is the loss of the minibatch before the primal step, as in the reference implementation
    (open-unlearning, ``pdu.py``). Unlike there, L_f includes only answer tokens. L_r is computed even while α is 0, so
    that a violated constraint raises α again.
    """

    Config = PduConfig
    title = "PDU"
    source = "Entesari et al., arXiv 2506.05314, section 3; dual step of open-unlearning"
    tasks = frozenset({"language"})
    space: ClassVar = SINGLE_LOOP_SPACE | {
        "retain_weight": {"low": 1.0, "high": 300.0, "log": True},
        "dual_step": {"low": 0.3, "high": 30.0, "log": True},
        "tolerance": {"low": 0.1, "high": 10.0, "log": True},
    }
    whole_logits = True
    published: ClassVar = {"forget_weight": 1.0, "retain_weight": 100.0, "dual_step": 5.0}
    config: PduConfig
    task: TextTask

    @classmethod
    def passes(cls, config: Any, forget_rows: int, retain_rows: int) -> tuple[Passes, Passes]:
        """Return one gradient evaluation of each loss per step, whatever its weight, and the passes that give ε."""
        measured = min(MEASURED_ROWS, retain_rows) if config.epsilon is None else 0
        total = Passes(forget=1, retain=1) * config.steps
        total += Passes(retain_forward=math.ceil(measured / config.batch_size))
        return total, total

    def __init__(self, context: Context[Example], config: PduConfig) -> None:
        super().__init__(context, config)
        self._loss = FlatteningLoss(self.task.loss.pad_id)
        self.dual_variable = config.retain_weight
        self.epsilon = config.epsilon or (1 + config.tolerance) * self._target_retain_loss()

    def _target_retain_loss(self) -> float:
        """Return the target's token-mean NLL on at most ``MEASURED_ROWS`` retain rows, which the seed draws."""
        rows = list(self.task.retain_rows)
        if len(rows) > MEASURED_ROWS:
            rows = random.Random(f"{self.context.seed}/pdu").sample(rows, MEASURED_ROWS)
        nll = answer_nll_per_row(self.engine, rows, self.task.loss.pad_id, self.config.batch_size)
        return sum(nll) / sum(row.answer_length for row in rows)

    def forget_loss(self, rows: Sequence[Example]) -> FlatteningLoss:
        """Return the logit-flattening loss."""
        return self._loss

    def weights(self) -> tuple[float, float]:
        """Return γ and the dual variable α."""
        return self.config.forget_weight, self.dual_variable

    def direction(self) -> Direction:
        """Return γ∇L_f + α∇L_r. Both losses are computed, even at weight 0."""
        total = self.engine.space.gradient_zeros()
        gamma, alpha = self.weights()
        rows = self._forget_sampler.draw()
        forget_loss = self.add_gradient(self.forget_loss(rows), rows, total, gamma)
        rows = self._retain_sampler.draw()
        retain_loss = self.add_gradient(self.retain_loss(rows), rows, total, alpha)
        return Direction(total, forget_loss, retain_loss)

    def on_step_end(self, direction: Direction) -> None:
        """Take the dual step α ← max(0, α + s(L_r − ε))."""
        assert direction.retain_loss is not None
        violation = direction.retain_loss - self.epsilon
        self.dual_variable = max(0.0, self.dual_variable + self.config.dual_step * violation)

    def extra_state(self) -> dict[str, Any]:
        """Return the dual variable."""
        return {"dual": self.dual_variable}

    def restore_extra(self, state: dict[str, Any]) -> None:
        """Restore the dual variable."""
        self.dual_variable = float(state["dual"])
