"""DPO: a refusal is preferred to the forgotten answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ofmu.config.base import PositiveFloat
from ofmu.data.rows import Example
from ofmu.losses import AnswerLoss, answer_nll
from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE
from ofmu.methods.token_losses import TokenLossConfig, TokenLossMethod, as_tensor


class DpoConfig(TokenLossConfig):
    """DPO's settings."""

    name: Literal["dpo"] = "dpo"
    beta: PositiveFloat = 0.1
    """b, the inverse temperature."""


class DpoLoss(AnswerLoss):
    """−(2/b) log σ(b [(nll_0 − nll)(refusal) − (nll_0 − nll)(answer)]), averaged over rows.

    ``refusals`` gives each row's preferred answer and ``start`` the start model's NLL of both, by ``id(row)``.
    """

    def __init__(self, beta: float, refusals: Mapping[int, Example], start: Mapping[int, float], pad_id: int) -> None:
        super().__init__(pad_id)
        self._beta, self._refusals, self._start = beta, refusals, start

    def size(self, row: Example) -> int:
        """Return 1: the mean is over rows."""
        return 1

    def tokens(self, row: Example) -> int:
        """Return the number of tokens of the row and of its refusal."""
        return len(row.input_ids) + len(self._refusals[id(row)].input_ids)

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the rows' summed loss, from one forward pass of refusals and answers together."""
        pairs = [*(self._refusals[id(row)] for row in rows), *rows]
        nll = answer_nll(module, pairs, self.pad_id, device)
        preferred, rejected = (as_tensor(self._start, pairs, nll) - nll).chunk(2)
        return -(2 / self._beta) * functional.logsigmoid(self._beta * (preferred - rejected)).sum()


@register("dpo")
class DPO(TokenLossMethod):
    """L_forget = −(2/b) log σ(b [(nll_0 − nll)(refusal) − (nll_0 − nll)(answer)]), nll_0 the start model's.

    Each forget row keeps the one refusal that the task draws for it. The start model's losses are computed once,
    before the first step. The factor 2/b, where DPO has 1, makes the gradient's scale that of NPO.
    """

    Config = DpoConfig
    title = "DPO (refusals)"
    source = "Rafailov et al., arXiv 2305.18290, equation 7; with refusals and the factor 2/b as in open-unlearning"
    space: ClassVar = SINGLE_LOOP_SPACE | {"beta": {"low": 0.03, "high": 1.0, "log": True}}
    published: ClassVar = {"beta": 0.1, "forget_weight": 1.0, "retain_weight": 1.0}
    settings: DpoConfig

    def __init__(self, context: Context[Example], settings: DpoConfig) -> None:
        super().__init__(context, settings)
        rows = self.task.forget_rows
        # held here, since the losses know rows by id
        self._refusals: list[Example] = context.task.refusals()  # type: ignore[attr-defined]
        start = self.nll_now([*rows, *self._refusals])
        by_row = {id(row): refusal for row, refusal in zip(rows, self._refusals, strict=True)}
        self._loss = DpoLoss(settings.beta, by_row, start, self.pad_id)

    def forget_loss(self, rows: Sequence[Example]) -> DpoLoss:
        """Return the DPO loss."""
        return self._loss
