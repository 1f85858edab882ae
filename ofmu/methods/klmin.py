"""KL-minimisation: ascent on the forget rows, while the answers to the retain rows stay close to the target's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from ofmu.data.rows import Example
from ofmu.losses import Loss
from ofmu.methods import register
from ofmu.methods.gradascent import NegatedLoss
from ofmu.methods.token_losses import TokenLossConfig, TokenLossMethod


class KlMinConfig(TokenLossConfig):
    """The settings of KL-minimisation."""

    name: Literal["klmin"] = "klmin"
    """Selects KL-minimisation."""
    retain_loss: Literal["kl"] = "kl"
    """L_retain: KL(target ‖ model). With the NLL, the method would be GradDiff."""


@register("klmin")
class KlMin(TokenLossMethod):
    """L = −γL_f + α KL(π_0 ‖ π) on retain answers, π_0 the target's distribution.

    The divergence is averaged over answer tokens. The reference implementation averages over prompt and padding too.
    """

    Config = KlMinConfig
    title = "KL-minimisation"
    source = "Maini et al. (TOFU), arXiv 2401.06121, section 3.3"
    published: ClassVar = {"forget_weight": 1.0, "retain_weight": 1.0}

    def forget_loss(self, rows: Sequence[Example]) -> Loss[Example]:
        """Return −L_f."""
        return NegatedLoss(self.task.loss)
