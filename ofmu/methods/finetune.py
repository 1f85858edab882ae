"""Fine-tuning on the retain rows alone, in the hope that the rest is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, TypeVar

from ofmu.config.base import NonNegativeFloat
from ofmu.methods import register
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE, SingleLoopConfig, SingleLoopMethod

RowT = TypeVar("RowT")


class RetainOnlyConfig(SingleLoopConfig):
    """Settings of methods that never look at the forget rows."""

    forget_weight: NonNegativeFloat = 0.0

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that a run under these will ignore."""
        unused = ["method.forget_weight has no effect: the method never looks at the forget rows"]
        return super().ineffective() + (unused if self.forget_weight > 0 else [])


class FinetuneConfig(RetainOnlyConfig):
    """Fine-tuning's settings."""

    name: Literal["finetune"] = "finetune"


@register("finetune")
class Finetune(SingleLoopMethod[RowT]):
    """L = αL_r."""

    Config: ClassVar[type[SingleLoopConfig]] = FinetuneConfig
    title = "Fine-tune"
    source = "Golatkar et al., arXiv 1911.04933; as a baseline in Jia et al., arXiv 2304.04934"
    space: ClassVar = {key: SINGLE_LOOP_SPACE[key] for key in ("lr", "steps")}
    published: ClassVar = {"lr": 0.01, "update": "sgd"}

    def forget_loss(self, rows: Sequence[RowT]) -> None:
        """Return None: the forget rows are left alone."""
        return
