"""UNDIAL: the model learns what the start model would answer if it thought less of the memorised tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from ofmu.config.base import NonNegativeFloat, PositiveFloat
from ofmu.data.rows import Example
from ofmu.methods import register
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE
from ofmu.methods.token_losses import TokenLoss, TokenLossConfig, TokenLossMethod, stacked


class UndialConfig(TokenLossConfig):
    """UNDIAL's settings."""

    name: Literal["undial"] = "undial"
    beta: PositiveFloat = 10.0
    """b, by which the true token's logit is lowered."""
    retain_weight: NonNegativeFloat = 0.0


class UndialLoss(TokenLoss):
    """CE(softmax(z_0 − b·onehot(label)), π), averaged over answer tokens; z_0 are the start model's logits."""

    def __init__(self, beta: float, start: Mapping[int, Tensor], pad_id: int) -> None:
        super().__init__(pad_id)
        self._beta, self._start = beta, start

    def per_token(self, logits: Tensor, labels: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the tokens' cross-entropies in nats."""
        labels = labels.unsqueeze(1)
        goal = stacked(self._start, rows, logits)
        goal = goal.scatter(1, labels, goal.gather(1, labels) - self._beta)
        return functional.cross_entropy(logits, goal.softmax(-1), reduction="none")


@register("undial")
class UNDIAL(TokenLossMethod):
    """L_forget = CE(softmax(z_0 − b·onehot(label)), π), z_0 the start model's logits.

    The mean is over answer tokens; the reference implementation averages over prompt and padding too.
    """

    Config = UndialConfig
    title = "UNDIAL"
    source = "Dong et al., arXiv 2402.10052; values of the authors' note in open-unlearning"
    space: ClassVar = SINGLE_LOOP_SPACE | {
        "retain_weight": {"low": 0.0, "high": 5.0},
        "beta": {"low": 1.0, "high": 30.0, "log": True},
    }
    published: ClassVar = {"beta": 10.0, "retain_weight": 0.0, "lr": 1e-4, "batch_size": 16}
    compares: ClassVar = True
    settings: UndialConfig

    def forget_loss(self, rows: Sequence[Example]) -> UndialLoss:
        """Return the UNDIAL loss, after one forward pass of the start model; collective."""
        return UndialLoss(self.settings.beta, self.start_logits(rows), self.pad_id)
