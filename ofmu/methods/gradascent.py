"""Gradient ascent on the forget rows alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from ofmu.config.base import NonNegativeFloat
from ofmu.losses import Loss
from ofmu.methods import register
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE, SingleLoopConfig, SingleLoopMethod

RowT = TypeVar("RowT")


class Negated(Loss[RowT]):
    """−L, so that descending it ascends L."""

    def __init__(self, loss: Loss[RowT]) -> None:
        self._loss = loss

    def size(self, row: RowT) -> int:
        """Return the row's share of the denominator."""
        return self._loss.size(row)

    def tokens(self, row: RowT) -> int:
        """Return how many tokens a forward pass of the row reads."""
        return self._loss.tokens(row)

    def total(self, module: Callable[..., Any], rows: Sequence[RowT], device: torch.device) -> Tensor:
        """Return minus the rows' summed loss."""
        return -self._loss.total(module, rows, device)


class GradAscentConfig(SingleLoopConfig):
    """Gradient ascent's settings."""

    name: Literal["gradascent"] = "gradascent"
    retain_weight: NonNegativeFloat = 0.0


@register("gradascent")
class GradAscent(SingleLoopMethod[RowT]):
    """L = −L_f."""

    Config: ClassVar[type[SingleLoopConfig]] = GradAscentConfig
    title = "GradAscent"
    source = "Jang et al., arXiv 2210.01504; Maini et al. (TOFU), arXiv 2401.06121, section 3.3"
    space: ClassVar = {key: value for key, value in SINGLE_LOOP_SPACE.items() if key != "retain_weight"}

    def forget_loss(self, rows: Sequence[RowT]) -> Loss[RowT]:
        """Return −L_f."""
        return Negated(self.task.loss)
