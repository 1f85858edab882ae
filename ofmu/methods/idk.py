"""IDK: the model learns refusals as the answers to the forget questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from ofmu.data.rows import Example
from ofmu.losses import Loss
from ofmu.methods import register
from ofmu.methods.token_losses import TokenLossConfig, TokenLossMethod


class IdkConfig(TokenLossConfig):
    """The settings of IDK."""

    name: Literal["idk"] = "idk"
    """Selects IDK."""


@register("idk")
class IDK(TokenLossMethod):
    """L = γ NLL(refusals) + αL_r, with one refusal in place of the answer of each forget row.

    The task draws one refusal per forget row. The refusal of a row does not change during the run.
    """

    Config = IdkConfig
    title = "IDK"
    source = "Maini et al. (TOFU), arXiv 2401.06121, section 3.3 (Preference Optimization)"
    published: ClassVar = {"forget_weight": 1.0, "retain_weight": 1.0}

    def forget_rows(self) -> list[Example]:
        """Return the forget questions with refusals as answers."""
        return self.task.refusals()

    def forget_loss(self, rows: Sequence[Example]) -> Loss[Example]:
        """Return the NLL of the refusals."""
        return self.task.loss
