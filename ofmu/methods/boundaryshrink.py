"""Boundary shrink: the model learns, for each forget image, the class across the nearest decision boundary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ofmu.config.base import NonNegativeFloat
from ofmu.engine.base import RowFunction
from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE, SingleLoopConfig, SingleLoopMethod
from ofmu.vectors.held import Passes
from ofmu.vision.loss import ImageLoss, image_loss
from ofmu.vision.rows import ImageRow


class BoundaryShrinkConfig(SingleLoopConfig):
    """The settings of boundary shrink."""

    name: Literal["boundaryshrink"] = "boundaryshrink"
    """Selects boundary shrink."""
    radius: Annotated[float, Field(gt=0, le=1)] = 0.1
    """ε, the change of each pixel by the attack. Pixels have values between 0 and 1."""
    retain_weight: NonNegativeFloat = 0.0
    """α, the weight of L_r. 0, as published: the retain rows are not used."""


@register("boundaryshrink")
class BoundaryShrink(SingleLoopMethod[ImageRow]):
    """L = γ CE(forget, ŷ) + αL_r, ŷ the target's class at x′ = clip(x + ε sign ∇ₓ CE(x, y), 0, 1).

    ŷ is computed once, at θ_0. If the attack does not change the class, ŷ = y, as published.
    """

    Config: ClassVar[type[SingleLoopConfig]] = BoundaryShrinkConfig
    title = "Boundary shrink"
    source = "Chen et al. (Boundary Unlearning), arXiv 2303.11570"
    tasks = frozenset({"vision"})
    space: ClassVar[dict[str, Any]] = SINGLE_LOOP_SPACE | {
        "radius": {"low": 0.02, "high": 0.3, "log": True},
        "retain_weight": {"low": 0.0, "high": 5.0},
    }
    published: ClassVar = {"radius": 0.1, "retain_weight": 0.0, "update": "sgd", "lr": 1e-5}

    @classmethod
    def passes(cls, config: Any, forget_rows: int, retain_rows: int) -> tuple[Passes, Passes]:
        """Return the passes of one loop, and those of the attack."""
        least, most = super().passes(config, forget_rows, retain_rows)
        batches = math.ceil(forget_rows / config.batch_size)
        attack = Passes(forget=batches, forget_forward=batches)
        return least + attack, most + attack

    def __init__(self, context: Context[ImageRow], config: BoundaryShrinkConfig) -> None:
        super().__init__(context, config)
        loss = image_loss(self.task)
        labels: dict[int, int] = {}
        for start in range(0, len(self.forget_rows()), config.batch_size):
            rows = self.forget_rows()[start : start + config.batch_size]
            # The engine counts the pass of the attacked images. The gradient by the pixels costs a pass like any other.
            self.engine.cost_tracker.count(1, len(rows))
            classes = self.engine.row_values(nearest_classes(loss, config.radius), rows, len(rows))
            labels.update((id(row), int(label)) for row, label in zip(rows, classes, strict=True))
        self._relabelled = loss.relabelled(labels)

    def forget_loss(self, rows: Sequence[ImageRow]) -> ImageLoss:
        """Return the cross-entropy with ŷ as labels."""
        return self._relabelled


def nearest_classes(loss: ImageLoss, radius: float) -> RowFunction[ImageRow]:
    """Return a function that returns ŷ of each row, the model's class at the row's FGSM image, as a scalar tensor."""

    def compute(module: Callable[..., Any], rows: Sequence[ImageRow], device: torch.device) -> list[Tensor]:
        with torch.enable_grad():
            pixels = loss.pixels(module, rows, device).requires_grad_()
            labels = loss.labels(rows, device)
            value = functional.cross_entropy(loss.logits_of_pixels(module, pixels), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(value, pixels)
        attacked = (pixels.detach() + radius * gradient.sign()).clamp(0, 1)
        return [*loss.logits_of_pixels(module, attacked).argmax(1)]

    return compute
