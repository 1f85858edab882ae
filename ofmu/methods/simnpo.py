"""SimNPO: NPO on the loss per token, without a comparison with the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ofmu.config.base import NonNegativeFloat, PositiveFloat
from ofmu.data.rows import Example
from ofmu.methods import register
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE
from ofmu.methods.token_losses import RowLoss, TokenLossConfig, TokenLossMethod, preference_losses


class SimNpoConfig(TokenLossConfig):
    """The settings of SimNPO."""

    name: Literal["simnpo"] = "simnpo"
    """Selects SimNPO."""
    beta: PositiveFloat = 4.5
    """b, the inverse temperature."""
    delta: NonNegativeFloat = 0.0
    """δ, the margin in nats per token. The paper's γ is bδ."""
    forget_weight: NonNegativeFloat = 0.125
    """γ, the weight of L_forget. This γ is not the paper's."""


class SimNpoLoss(RowLoss):
    """−(2/b) log σ(b (nll/|y| − δ)), averaged over rows. |y| is the number of answer tokens of a row."""

    def __init__(self, beta: float, delta: float, pad_id: int) -> None:
        super().__init__(pad_id)
        self._beta, self._delta = beta, delta

    def per_row(self, nll: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the losses of the rows."""
        lengths = torch.tensor([row.answer_length for row in rows], dtype=nll.dtype, device=nll.device)
        return preference_losses(nll / lengths - self._delta, self._beta)


@register("simnpo")
class SimNPO(TokenLossMethod):
    """L_forget = −(2/b) log σ(b nll/|y| − bδ), |y| the number of answer tokens."""

    Config = SimNpoConfig
    title = "SimNPO"
    source = (
        "Fan et al., arXiv 2410.07163; values of the authors' code for TOFU forget10; δ inside b as in open-unlearning"
    )
    space: ClassVar = SINGLE_LOOP_SPACE | {
        "beta": {"low": 1.0, "high": 10.0, "log": True},
        "delta": {"low": 0.0, "high": 2.0},
        "forget_weight": {"low": 0.05, "high": 2.0, "log": True},
    }
    published: ClassVar = {"beta": 4.5, "delta": 0.0, "forget_weight": 0.125, "retain_weight": 1.0}
    config: SimNpoConfig

    def forget_loss(self, rows: Sequence[Example]) -> SimNpoLoss:
        """Return the SimNPO loss."""
        return SimNpoLoss(self.config.beta, self.config.delta, self.pad_id)
