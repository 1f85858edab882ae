"""SatImp: gradient ascent with large weights for tokens that are neither forgotten nor certain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from ofmu.config.base import NonNegativeFloat
from ofmu.data.rows import Example
from ofmu.methods import register
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE
from ofmu.methods.token_losses import TokenLossConfig, TokenLossMethod
from ofmu.methods.wga import WeightedAscentLoss


class SatImpConfig(TokenLossConfig):
    """The settings of SatImp."""

    name: Literal["satimp"] = "satimp"
    """Selects SatImp."""
    beta1: NonNegativeFloat = 5.0
    """b₁, the exponent of p (saturation)."""
    beta2: NonNegativeFloat = 1.0
    """b₂, the exponent of 1 − p (importance). At 0, SatImp is WGA."""
    forget_weight: NonNegativeFloat = 0.1
    """γ, the weight of L_forget."""


@register("satimp")
class SatImp(TokenLossMethod):
    """L_forget = −p^b₁ (1 − p)^b₂ nll per answer token, p = exp(−nll) without gradient."""

    Config = SatImpConfig
    title = "SatImp"
    source = "Yang et al., arXiv 2505.11953, section 5; values of open-unlearning"
    space: ClassVar = SINGLE_LOOP_SPACE | {
        "beta1": {"low": 0.1, "high": 10.0, "log": True},
        "beta2": {"low": 0.1, "high": 3.0, "log": True},
        "forget_weight": {"low": 0.03, "high": 3.0, "log": True},
    }
    published: ClassVar = {"beta1": 5.0, "beta2": 1.0, "forget_weight": 0.1, "retain_weight": 1.0, "lr": 1e-5}
    config: SatImpConfig

    def forget_loss(self, rows: Sequence[Example]) -> WeightedAscentLoss:
        """Return the weighted ascent."""
        return WeightedAscentLoss(self.config.beta1, self.config.beta2, self.pad_id)
