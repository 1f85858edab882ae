"""A method and an objective of one's own, which examples/own_method.py searches; workers import this file by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ofmu.config.base import PositiveFloat
from ofmu.losses import Loss
from ofmu.methods import register
from ofmu.methods.gradascent import NegatedLoss
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE, SingleLoopConfig, SingleLoopMethod


class FadingAscentConfig(SingleLoopConfig):
    """The method's settings; their names stand under ``method`` in a config."""

    name: Literal["fadingascent"] = "fadingascent"
    half_life: PositiveFloat = 10.0
    """Steps in which the weight of the forget rows halves."""


@register("fadingascent")
class FadingAscent(SingleLoopMethod[Any]):
    """L = −γ 2^(−t/h) L_f + α L_r: ascent on the forget rows that gives way to the retain rows."""

    Config = FadingAscentConfig
    title = "Fading ascent"
    source = "examples/own_module.py"
    space: ClassVar = SINGLE_LOOP_SPACE | {"half_life": {"low": 2.0, "high": 50.0, "log": True}}

    def forget_loss(self, rows: Sequence[Any]) -> Loss[Any]:
        """Return −L_f."""
        return NegatedLoss(self.task.loss)

    def weights(self) -> tuple[float, float]:
        """Return γ and α for the next step."""
        gamma, alpha = super().weights()
        return gamma * 0.5 ** (self.steps_taken / self.config.half_life), alpha


def best_remembered(scores: Any, reference: Any) -> float:
    """Return the highest probability, token by token, of any answer that was to be forgotten."""
    return max(math.exp(-row.answer.mean) for row in scores.sets["forget"])
