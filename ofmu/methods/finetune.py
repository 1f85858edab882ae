"""Fine-tuning on the retain rows only. The method does not use the forget rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, TypeVar

from ofmu.config.base import NonNegativeFloat
from ofmu.methods import register
from ofmu.methods.single_loop import LR_AND_STEPS_SPACE, SingleLoopConfig, SingleLoopMethod

RowT = TypeVar("RowT")


class RetainOnlyConfig(SingleLoopConfig):
    """The settings that methods without a forget loss share."""

    forget_weight: NonNegativeFloat = 0.0
    """No effect, since the method does not use the forget rows."""

    @property
    def has_forget_stop(self) -> bool:
        """False: there is no forget term to stop."""
        return False

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that has no effect."""
        notes = super().ineffective()
        if self.forget_weight > 0:
            notes.append("method.forget_weight has no effect: the method does not use the forget rows")
        return notes


class FinetuneConfig(RetainOnlyConfig):
    """The settings of fine-tuning."""

    name: Literal["finetune"] = "finetune"
    """Selects fine-tuning."""


@register("finetune")
class Finetune(SingleLoopMethod[RowT]):
    """L = αL_r."""

    Config: ClassVar[type[SingleLoopConfig]] = FinetuneConfig
    title = "Fine-tune"
    source = "Golatkar et al., arXiv 1911.04933; as a baseline in Jia et al., arXiv 2304.04934"
    space: ClassVar = LR_AND_STEPS_SPACE
    uses_forget_loss: ClassVar = False
    published: ClassVar = {"lr": 0.01, "update": "sgd"}

    def forget_loss(self, rows: Sequence[RowT]) -> None:
        """Return None, since the method has no forget loss."""
        return
