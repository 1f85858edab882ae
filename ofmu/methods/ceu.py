"""CE-U: the model learns its own answer with the true token ruled out."""

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
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE
from ofmu.methods.token_losses import TokenLoss, TokenLossConfig, TokenLossMethod


class CeuConfig(TokenLossConfig):
    """CE-U's settings."""

    name: Literal["ceu"] = "ceu"
    skipped_tokens: NonNegativeInt = 1
    """First tokens of each answer that are left out of the loss."""
    retain_weight: NonNegativeFloat = 0.0


class CeuLoss(TokenLoss):
    """CE(softmax(z without the true token, as constants), softmax(z)), averaged over answer tokens from a first one."""

    def __init__(self, skipped: int, pad_id: int) -> None:
        super().__init__(pad_id)
        self._skipped = skipped

    def size(self, row: Example) -> int:
        """Return the number of answer tokens that count."""
        return max(0, row.answer_length - self._skipped)

    def per_token(self, logits: Tensor, labels: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the cross-entropies in nats of the tokens that count."""
        counted = torch.cat([torch.arange(row.answer_length) >= self._skipped for row in rows]).to(logits.device)
        logits, labels = logits[counted], labels[counted]
        goal = logits.detach().scatter(1, labels.unsqueeze(1), -torch.inf).softmax(-1)
        return functional.cross_entropy(logits, goal, reduction="none")


@register("ceu")
class CEU(TokenLossMethod):
    """L_forget = CE(softmax(z with z_label = −∞), softmax(z)) per answer token, the first argument without gradient.

    The first token of an answer is left out, and rows with no other; the authors train without a retain term.
    """

    Config = CeuConfig
    title = "CE-U"
    source = "Yang, arXiv 2503.01224, with the first answer token left out as in its training settings"
    space: ClassVar = {key: value for key, value in SINGLE_LOOP_SPACE.items() if key != "retain_weight"}
    published: ClassVar = {"skipped_tokens": 1, "retain_weight": 0.0}
    settings: CeuConfig

    def forget_rows(self) -> list[Example]:
        """Return the forget rows that have a token that counts.

        Raises:
            ConfigError: there is none.
        """
        skipped = self.settings.skipped_tokens
        rows = [row for row in self.task.forget_rows if row.answer_length > skipped]
        if not rows:
            raise ConfigError(
                f"method.skipped_tokens {skipped} leaves no token of any forget answer: lower it, "
                f"the longest has {max(row.answer_length for row in self.task.forget_rows)}"
            )
        return rows

    def forget_loss(self, rows: Sequence[Example]) -> CeuLoss:
        """Return the CE-U loss."""
        return CeuLoss(self.settings.skipped_tokens, self.pad_id)
