"""Negative preference optimisation: ascent that fades as the model leaves the start model behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from ofmu.config.base import PositiveFloat
from ofmu.data.rows import Example
from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE
from ofmu.methods.token_losses import RowLoss, TokenLossConfig, TokenLossMethod, as_tensor


class NpoConfig(TokenLossConfig):
    """NPO's settings."""

    name: Literal["npo"] = "npo"
    beta: PositiveFloat = 0.1
    """b, the inverse temperature; towards 0 NPO becomes gradient ascent."""


class NpoLoss(RowLoss):
    """−(2/b) log σ(b (nll − nll_0)), averaged over rows; nll is summed over a row's answer tokens."""

    def __init__(self, beta: float, start: Mapping[int, float], pad_id: int) -> None:
        super().__init__(pad_id)
        self._beta, self._start = beta, start

    def per_row(self, nll: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the rows' losses."""
        return -(2 / self._beta) * functional.logsigmoid(self._beta * (nll - as_tensor(self._start, rows, nll)))


@register("npo")
class NPO(TokenLossMethod):
    """L_forget = −(2/b) log σ(b (nll − nll_0)), nll summed over the answer, nll_0 the start model's.

    The start model's losses are computed once, before the first step.
    """

    Config = NpoConfig
    title = "NPO"
    source = "Zhang et al., arXiv 2404.05868, equation 3"
    space: ClassVar = SINGLE_LOOP_SPACE | {"beta": {"low": 0.03, "high": 1.0, "log": True}}
    published: ClassVar = {"beta": 0.1, "forget_weight": 1.0, "retain_weight": 1.0}
    settings: NpoConfig

    def __init__(self, context: Context[Example], settings: NpoConfig) -> None:
        super().__init__(context, settings)
        self._loss = NpoLoss(settings.beta, self.nll_now(self.forget_rows()), self.pad_id)

    def forget_loss(self, rows: Sequence[Example]) -> NpoLoss:
        """Return the NPO loss."""
        return self._loss
