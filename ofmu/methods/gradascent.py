"""Gradient ascent on the forget rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from ofmu.config.base import NonNegativeFloat
from ofmu.losses import Loss
from ofmu.methods import register
from ofmu.methods.single_loop import LR_AND_STEPS_SPACE, SingleLoopConfig, SingleLoopMethod

RowT = TypeVar("RowT")


class NegatedLoss(Loss[RowT]):
    """−L. Descent of −L is ascent of L."""

    def __init__(self, loss: Loss[RowT]) -> None:
        self._loss = loss

    def size(self, row: RowT) -> int:
        """Return the row's part of the denominator."""
        return self._loss.size(row)

    def tokens(self, row: RowT) -> int:
        """Return the number of tokens that a forward pass of the row reads."""
        return self._loss.tokens(row)

    def total(self, module: Callable[..., Any], rows: Sequence[RowT], device: torch.device) -> Tensor:
        """Return minus the summed loss of the rows."""
        return -self._loss.total(module, rows, device)


class GradAscentConfig(SingleLoopConfig):
    """The settings of gradient ascent."""

    name: Literal["gradascent"] = "gradascent"
    """Selects gradient ascent."""
    retain_weight: NonNegativeFloat = 0.0
    """α, the weight of L_r. 0, as published: the retain rows are not used."""


@register("gradascent")
class GradAscent(SingleLoopMethod[RowT]):
    """L = −L_f."""

    Config: ClassVar[type[SingleLoopConfig]] = GradAscentConfig
    title = "GradAscent"
    source = "Jang et al., arXiv 2210.01504; Maini et al. (TOFU), arXiv 2401.06121, section 3.3"
    space: ClassVar = LR_AND_STEPS_SPACE

    def forget_loss(self, rows: Sequence[RowT]) -> Loss[RowT]:
        """Return −L_f."""
        return NegatedLoss(self.task.loss)
