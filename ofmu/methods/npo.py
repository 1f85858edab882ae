"""Negative preference optimisation: an ascent that slows down as the model moves away from the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor

from ofmu.config.base import PositiveFloat
from ofmu.data.rows import Example
from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE
from ofmu.methods.token_losses import RowLoss, TokenLossConfig, TokenLossMethod, preference_losses, row_tensor


class NpoConfig(TokenLossConfig):
    """The settings of NPO."""

    name: Literal["npo"] = "npo"
    """Selects NPO."""
    beta: PositiveFloat = 0.1
    """b, the inverse temperature. As b approaches 0, NPO approaches gradient ascent."""


class NpoLoss(RowLoss):
    """−(2/b) log σ(b (nll − nll_0)), averaged over rows. nll is the sum over the answer tokens of a row.

    Args:
        beta: b.
        target_nll: nll_0, the target's nll, by ``id(row)``.
        pad_id: the padding token.
    """

    def __init__(self, beta: float, target_nll: Mapping[int, float], pad_id: int) -> None:
        super().__init__(pad_id)
        self._beta, self._target_nll = beta, target_nll

    def per_row(self, nll: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the losses of the rows."""
        return preference_losses(nll - row_tensor(self._target_nll, rows, nll), self._beta)


@register("npo")
class NPO(TokenLossMethod):
    """L_forget = −(2/b) log σ(b (nll − nll_0)), nll summed over the answer, nll_0 the target's.

    nll_0 is computed once, before the first step.
    """

    Config = NpoConfig
    title = "NPO"
    source = "Zhang et al., arXiv 2404.05868, equation 3"
    space: ClassVar = SINGLE_LOOP_SPACE | {"beta": {"low": 0.03, "high": 1.0, "log": True}}
    published: ClassVar = {"beta": 0.1, "forget_weight": 1.0, "retain_weight": 1.0}
    answers_measured_first = 1
    config: NpoConfig

    def __init__(self, context: Context[Example], config: NpoConfig) -> None:
        super().__init__(context, config)
        self._loss = NpoLoss(config.beta, self.nll_by_row(self.forget_rows()), self.pad_id)

    def forget_loss(self, rows: Sequence[Example]) -> NpoLoss:
        """Return the NPO loss."""
        return self._loss
