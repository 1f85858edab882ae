"""CE-U: the model learns its own answer distribution without the true token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ofmu.config.base import NonNegativeFloat, NonNegativeInt
from ofmu.data.rows import Example
from ofmu.errors import ConfigError
from ofmu.methods import register
from ofmu.methods.single_loop import LR_AND_STEPS_SPACE
from ofmu.methods.token_losses import TokenLoss, TokenLossConfig, TokenLossMethod


class CeuConfig(TokenLossConfig):
    """The settings of CE-U."""

    name: Literal["ceu"] = "ceu"
    """Selects CE-U."""
    skipped_tokens: NonNegativeInt = 1
    """Number of first tokens of each answer that the loss leaves out."""
    retain_weight: NonNegativeFloat = 0.0
    """α, the weight of L_retain. 0, as published: the retain rows are not used."""


class CeuLoss(TokenLoss):
    """CE(softmax(z with z_label = −∞), softmax(z)), averaged over answer tokens without the first ``skipped``.

    The first argument of CE has no gradient.
    """

    def __init__(self, skipped: int, pad_id: int) -> None:
        super().__init__(pad_id)
        self._skipped = skipped

    def size(self, row: Example) -> int:
        """Return the number of answer tokens that the loss includes."""
        return max(0, row.answer_length - self._skipped)

    def per_token(self, logits: Tensor, labels: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the cross-entropies in nats of the tokens that the loss includes."""
        included = torch.cat([torch.arange(row.answer_length) >= self._skipped for row in rows]).to(logits.device)
        logits, labels = logits[included], labels[included]
        without_label = logits.detach().scatter(1, labels.unsqueeze(1), -torch.inf).softmax(-1)
        return functional.cross_entropy(logits, without_label, reduction="none")


@register("ceu")
class CEU(TokenLossMethod):
    """L_forget = CE(softmax(z with z_label = −∞), softmax(z)) per answer token, the first argument without gradient.

    The loss leaves out the first token of each answer, and rows whose answers have one token. The authors train without
    a retain term.
    """

    Config = CeuConfig
    title = "CE-U"
    source = "Yang, arXiv 2503.01224, without the first answer token as in the paper's training settings"
    space: ClassVar = LR_AND_STEPS_SPACE
    whole_logits = True
    published: ClassVar = {"skipped_tokens": 1, "retain_weight": 0.0}
    config: CeuConfig

    def forget_rows(self) -> list[Example]:
        """Return the forget rows of which the loss includes a token.

        Raises:
            ConfigError: there is no such row.
        """
        skipped = self.config.skipped_tokens
        rows = [row for row in self.task.forget_rows if row.answer_length > skipped]
        if not rows:
            longest = max(row.answer_length for row in self.task.forget_rows)
            raise ConfigError(
                f"method.skipped_tokens {skipped} leaves no token of any forget answer: set skipped_tokens below "
                f"{longest}, the length of the longest answer"
            )
        return rows

    def forget_loss(self, rows: Sequence[Example]) -> CeuLoss:
        """Return the CE-U loss."""
        return CeuLoss(self.config.skipped_tokens, self.pad_id)
