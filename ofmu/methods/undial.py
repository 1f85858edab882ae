"""UNDIAL: the model learns the target's answer distribution with the logit of each true token lowered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from ofmu.config.base import NonNegativeFloat, PositiveFloat
from ofmu.data.rows import Example
from ofmu.methods import register
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE
from ofmu.methods.token_losses import TokenLoss, TokenLossConfig, TokenLossMethod, concatenate_rows
from ofmu.models.chunked_logits import ChunkedLogits


class UndialConfig(TokenLossConfig):
    """The settings of UNDIAL."""

    name: Literal["undial"] = "undial"
    """Selects UNDIAL."""
    beta: PositiveFloat = 10.0
    """b, the amount by which the logit of the true token is lowered."""
    retain_weight: NonNegativeFloat = 0.0
    """α, the weight of L_retain. 0, as published: the retain rows are not used."""


class UndialLoss(TokenLoss):
    """CE(softmax(z_0 − b·onehot(label)), π), averaged over answer tokens.

    Args:
        beta: b.
        target_logits: z_0, the target's logits at the answer tokens, by ``id(row)``.
        pad_id: the padding token.
    """

    def __init__(self, beta: float, target_logits: Mapping[int, Tensor], pad_id: int) -> None:
        super().__init__(pad_id)
        self._beta, self._target_logits = beta, target_logits

    def per_token(self, logits: Tensor, labels: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the cross-entropies of the answer tokens in nats."""
        labels = labels.unsqueeze(1)
        lowered = concatenate_rows(self._target_logits, rows, logits)
        lowered = lowered.scatter(1, labels, lowered.gather(1, labels) - self._beta)
        return functional.cross_entropy(logits, lowered.softmax(-1), reduction="none")

    def per_chunked_token(self, logits: ChunkedLogits, labels: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the cross-entropies of the answer tokens in nats."""
        return logits.cross_entropy([self._target_logits[id(row)] for row in rows], (labels, self._beta))


@register("undial")
class UNDIAL(TokenLossMethod):
    """L_forget = CE(softmax(z_0 − b·onehot(label)), π), z_0 the target's logits.

    The mean is over answer tokens. The reference implementation averages over prompt and padding too.
    """

    Config = UndialConfig
    title = "UNDIAL"
    source = "Dong et al., arXiv 2402.10052; values of the authors' note in open-unlearning"
    space: ClassVar = SINGLE_LOOP_SPACE | {
        "retain_weight": {"low": 0.0, "high": 5.0},
        "beta": {"low": 1.0, "high": 30.0, "log": True},
    }
    published: ClassVar = {"beta": 10.0, "retain_weight": 0.0, "lr": 1e-4, "batch_size": 16}
    needs_target_logits: ClassVar = True
    config: UndialConfig

    def forget_loss(self, rows: Sequence[Example]) -> UndialLoss:
        """Return the UNDIAL loss, after one forward pass of the target; collective."""
        return UndialLoss(self.config.beta, self.target_logits(rows), self.pad_id)
