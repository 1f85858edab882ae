"""DPO: the model learns to prefer a refusal to the forget answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ofmu.config.base import PositiveFloat
from ofmu.data.rows import Example
from ofmu.losses import AnswerTokenMean, answer_nll
from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE
from ofmu.methods.token_losses import TokenLossConfig, TokenLossMethod, row_tensor


class DpoConfig(TokenLossConfig):
    """The settings of DPO."""

    name: Literal["dpo"] = "dpo"
    """Selects DPO."""
    beta: PositiveFloat = 0.1
    """b, the inverse temperature."""


class DpoLoss(AnswerTokenMean):
    """−(2/b) log σ(b [(nll_0 − nll)(preferred) − (nll_0 − nll)(answer)]), averaged over rows.

    Args:
        beta: b.
        preferred: the preferred answer of each row, by ``id(row)``.
        target_nll: nll_0, the target's nll of both answers, by ``id(row)``.
        pad_id: the padding token.
    """

    def __init__(
        self, beta: float, preferred: Mapping[int, Example], target_nll: Mapping[int, float], pad_id: int
    ) -> None:
        super().__init__(pad_id)
        self._beta, self._preferred, self._target_nll = beta, preferred, target_nll

    def size(self, row: Example) -> int:
        """Return 1, since the mean is over rows."""
        return 1

    def tokens(self, row: Example) -> int:
        """Return the number of tokens of the row and of the row with the preferred answer."""
        return len(row.input_ids) + len(self._preferred[id(row)].input_ids)

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the summed loss of the rows, from one forward pass of both answers together."""
        pairs = [*(self._preferred[id(row)] for row in rows), *rows]
        nll = answer_nll(module, pairs, self.pad_id, device)
        preferred, rejected = (row_tensor(self._target_nll, pairs, nll) - nll).chunk(2)
        return -(2 / self._beta) * functional.logsigmoid(self._beta * (preferred - rejected)).sum()


@register("dpo")
class DPO(TokenLossMethod):
    """L_forget = −(2/b) log σ(b [(nll_0 − nll)(refusal) − (nll_0 − nll)(answer)]), nll_0 the target's.

    The task draws one refusal per forget row. The refusal of a row does not change during the run. nll_0 is computed
    once, before the first step. The factor of DPO itself is 1. The factor 2/b gives the gradient the scale of NPO.
    """

    Config = DpoConfig
    title = "DPO (refusals)"
    source = "Rafailov et al., arXiv 2305.18290, equation 7; with refusals and the factor 2/b as in open-unlearning"
    space: ClassVar = SINGLE_LOOP_SPACE | {"beta": {"low": 0.03, "high": 1.0, "log": True}}
    published: ClassVar = {"beta": 0.1, "forget_weight": 1.0, "retain_weight": 1.0}
    answers_measured_first = answers_in_pass = 2
    config: DpoConfig

    def __init__(self, context: Context[Example], config: DpoConfig) -> None:
        super().__init__(context, config)
        rows = self.task.forget_rows
        # An attribute keeps these rows alive, since the loss finds rows by id.
        self._preferred = self.preferred_rows()
        target_nll = self.nll_by_row([*rows, *self._preferred])
        by_row = {id(row): preferred for row, preferred in zip(rows, self._preferred, strict=True)}
        self._loss = DpoLoss(config.beta, by_row, target_nll, self.pad_id)

    def preferred_rows(self) -> list[Example]:
        """Return one row per forget row: its question, and the answer to prefer; collective."""
        return self.task.refusals()

    def forget_loss(self, rows: Sequence[Example]) -> DpoLoss:
        """Return the DPO loss."""
        return self._loss
