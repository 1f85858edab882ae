"""WGA: gradient ascent in which the weight of a token is a power of the probability of the token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ofmu.config.base import NonNegativeFloat
from ofmu.data.rows import Example
from ofmu.methods import register
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE
from ofmu.methods.token_losses import TokenLoss, TokenLossConfig, TokenLossMethod
from ofmu.models.chunked_logits import ChunkedLogits


class WgaConfig(TokenLossConfig):
    """The settings of WGA."""

    name: Literal["wga"] = "wga"
    """Selects WGA."""
    beta: NonNegativeFloat = 1.0
    """b, the exponent of a token's probability. At 0, WGA is gradient ascent."""


class WeightedAscentLoss(TokenLoss):
    """−p^s (1 − p)^i nll with p = exp(−nll) without gradient, averaged over answer tokens (not over weights).

    Args:
        saturation: s.
        importance: i.
        pad_id: the padding token.
    """

    def __init__(self, saturation: float, importance: float, pad_id: int) -> None:
        super().__init__(pad_id)
        self._saturation, self._importance = saturation, importance

    def per_token(self, logits: Tensor, labels: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the losses of the answer tokens."""
        return self._ascent(functional.cross_entropy(logits, labels, reduction="none"))

    def per_chunked_token(self, logits: ChunkedLogits, labels: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the losses of the answer tokens."""
        return self._ascent(logits.nll(labels))

    def _ascent(self, nll: Tensor) -> Tensor:
        constant = nll.detach()
        # expm1 keeps the digits of 1 − p for a memorised token, whose p rounds to 1.
        weights = torch.exp(-self._saturation * constant) * (-torch.expm1(-constant)) ** self._importance
        return -weights * nll


@register("wga")
class WGA(TokenLossMethod):
    """L_forget = −p^b nll per answer token, p = exp(−nll) without gradient."""

    Config = WgaConfig
    title = "WGA"
    source = "Wang et al., arXiv 2502.19301; values of open-unlearning"
    space: ClassVar = SINGLE_LOOP_SPACE | {"beta": {"low": 0.1, "high": 10.0, "log": True}}
    published: ClassVar = {"beta": 1.0, "forget_weight": 1.0, "retain_weight": 1.0, "lr": 1e-5}
    config: WgaConfig

    def forget_loss(self, rows: Sequence[Example]) -> WeightedAscentLoss:
        """Return the weighted ascent."""
        return WeightedAscentLoss(self.config.beta, 0.0, self.pad_id)
