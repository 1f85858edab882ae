"""IDK: refusals are learned as the answers to the forget questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from ofmu.data.rows import Example
from ofmu.losses import Loss
from ofmu.methods import register
from ofmu.methods.token_losses import TokenLossConfig, TokenLossMethod


class IdkConfig(TokenLossConfig):
    """IDK's settings."""

    name: Literal["idk"] = "idk"


@register("idk")
class IDK(TokenLossMethod):
    """L = γ NLL(refusals) + αL_r, a refusal in the place of each forget row's answer.

    Each forget row keeps the one refusal that the task draws for it.
    """

    Config = IdkConfig
    title = "IDK"
    source = "Maini et al. (TOFU), arXiv 2401.06121, section 3.3, there under preference optimization"
    published: ClassVar = {"forget_weight": 1.0, "retain_weight": 1.0}

    def forget_rows(self) -> list[Example]:
        """Return the forget questions, answered by refusals."""
        refusals: list[Example] = self.task.refusals()  # type: ignore[attr-defined]
        return refusals

    def forget_loss(self, rows: Sequence[Example]) -> Loss[Example]:
        """Return the NLL of the refusals."""
        return self.task.loss
