"""PDU: forgetting as a constrained problem, solved by a primal step and a dual step in turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ofmu.config.base import NonNegativeFloat, PositiveFloat
from ofmu.data.collate import IGNORE_INDEX
from ofmu.data.rows import Example
from ofmu.losses import answer_logits, answer_nll
from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE, Direction, SingleLoopConfig, SingleLoopMethod

MEASURED_ROWS = 128
"""Retain rows on which the start model's loss is measured where ``epsilon`` is left out."""


class PduConfig(SingleLoopConfig):
    """PDU's settings."""

    name: Literal["pdu"] = "pdu"
    retain_weight: NonNegativeFloat = 100.0
    """α_0, where the dual variable starts."""
    dual_step: PositiveFloat = 5.0
    epsilon: PositiveFloat | None = None
    """ε, the retain loss (nats per token) that is allowed; None: (1 + tolerance) times the start model's."""
    tolerance: NonNegativeFloat = 0.5
    """Share by which the retain loss may exceed the start model's; read where ``epsilon`` is left out."""

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that a run under these will ignore."""
        notes = super().ineffective()
        if self.epsilon is not None and self.tolerance != type(self).model_fields["tolerance"].default:
            notes.append("method.tolerance has no effect: method.epsilon is given")
        return notes


class FlatteningLoss:
    """(max_v z_v − mean_v z_v)² of the logits z, averaged over the global minibatch's answer tokens.

    It is 0 where all logits are equal, so that the model's answer is uniform. Where several tokens share the
    maximum, the gradient is split among them.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def size(self, row: Example) -> int:
        """Return the number of answer tokens, EOS included."""
        return row.answer_length

    def tokens(self, row: Example) -> int:
        """Return the number of tokens of prompt and answer."""
        return len(row.input_ids)

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the sum over the rows' answer tokens."""
        logits, labels = answer_logits(module, rows, self._pad_id, device)
        margins = logits.amax(-1) - logits.mean(-1)
        return margins.square().masked_fill(labels == IGNORE_INDEX, 0.0).sum()


@register("pdu")
class PDU(SingleLoopMethod[Example]):
    """min L_f = mean (max_v z − mean_v z)² s.t. L_r ≤ ε, by descent of γL_f + αL_r and α ← max(0, α + s(L_r − ε)).

    The dual step s(L_r − ε) reads the minibatch's retain loss from before the primal step, as the reference
    implementation (open-unlearning, ``pdu.py``) does; unlike there, only answer tokens count in L_f. The retain
    loss is evaluated while α is 0 too, so that a violated constraint raises it again.
    """

    Config = PduConfig
    title = "PDU"
    source = "Entesari et al., arXiv 2506.05314, section 3; dual step of open-unlearning"
    tasks = frozenset({"language"})
    space: ClassVar = {name: spec for name, spec in SINGLE_LOOP_SPACE.items() if name != "retain_weight"} | {
        "retain_weight": {"low": 1.0, "high": 300.0, "log": True},
        "dual_step": {"low": 0.3, "high": 30.0, "log": True},
        "tolerance": {"low": 0.1, "high": 10.0, "log": True},
    }
    published: ClassVar = {"forget_weight": 1.0, "retain_weight": 100.0, "dual_step": 5.0}
    settings: PduConfig

    def __init__(self, context: Context[Example], settings: PduConfig) -> None:
        super().__init__(context, settings)
        self._pad_id = context.task.loss.pad_id  # type: ignore[attr-defined]
        self._loss = FlatteningLoss(self._pad_id)
        self.dual = settings.retain_weight
        self.epsilon = settings.epsilon or (1 + settings.tolerance) * self._start_loss()

    def _start_loss(self) -> float:
        """Return the start model's token-mean NLL on up to ``MEASURED_ROWS`` retain rows drawn from the seed."""
        rows = list(self.task.retain_rows)
        if len(rows) > MEASURED_ROWS:
            rows = random.Random(f"{self.context.seed}/pdu").sample(rows, MEASURED_ROWS)
        tokens = sum(self.task.loss.tokens(row) for row in rows)
        nll = self.engine.row_values(
            lambda module, part, device: [*answer_nll(module, part, self._pad_id, device)], rows, tokens
        )
        return sum(nll) / sum(row.answer_length for row in rows)

    def forget_loss(self, rows: Sequence[Example]) -> FlatteningLoss:
        """Return the logit-flattening loss."""
        return self._loss

    def weights(self) -> tuple[float, float]:
        """Return γ and the dual variable."""
        return self.settings.forget_weight, self.dual

    def direction(self) -> Direction:
        """Return γ∇L_f + α∇L_r; both losses are evaluated, whatever their weights."""
        total = self.engine.space.zeros()
        gamma, alpha = self.weights()
        rows = self._forget_sampler.draw()
        forget = self.add_gradient(self.forget_loss(rows), rows, total, gamma)
        rows = self._retain_sampler.draw()
        retain = self.add_gradient(self.retain_loss(rows), rows, total, alpha)
        return Direction(total, forget, retain)

    def after_step(self, direction: Direction) -> None:
        """Take the dual step."""
        assert direction.retain_loss is not None
        self.dual = max(0.0, self.dual + self.settings.dual_step * (direction.retain_loss - self.epsilon))

    def extra_state(self) -> dict[str, Any]:
        """Return the dual variable."""
        return {"dual": self.dual}

    def restore_extra(self, state: dict[str, Any]) -> None:
        """Take the dual variable back."""
        self.dual = float(state["dual"])
