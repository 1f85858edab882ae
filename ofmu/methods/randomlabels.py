"""Random labelling: the model learns wrong labels for forget images, and the true labels for retain images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from ofmu.methods import register
from ofmu.methods.single_loop import SingleLoopConfig, SingleLoopMethod
from ofmu.vision.loss import ImageLoss, image_loss
from ofmu.vision.rows import ImageRow


class RandomLabelsConfig(SingleLoopConfig):
    """The settings of random labelling."""

    name: Literal["randomlabels"] = "randomlabels"
    """Selects random labelling."""


@register("randomlabels")
class RandomLabels(SingleLoopMethod[ImageRow]):
    """L = γ CE(forget, y′) + α CE(retain, y), y′ ≠ y drawn anew for every minibatch, uniformly from the other classes.

    This is the paper's equation. The public implementation differs: it draws y′ from all classes, and it alternates
    between the two sets.
    """

    Config: ClassVar[type[SingleLoopConfig]] = RandomLabelsConfig
    title = "Random labels"
    source = "Golatkar et al., arXiv 1911.04933; Fan et al. (SalUn), arXiv 2310.12508, section 4"
    tasks = frozenset({"vision"})
    published: ClassVar = {"lr": 0.01, "update": "sgd", "forget_weight": 1.0, "retain_weight": 1.0}

    def forget_loss(self, rows: Sequence[ImageRow]) -> ImageLoss:
        """Return the cross-entropy with random labels for this minibatch. All ranks draw the same labels."""
        loss = image_loss(self.task)
        generator = np.random.default_rng([self.context.seed, self.steps_taken])
        shifts = generator.integers(1, loss.classes, size=len(rows)).tolist()
        return loss.relabelled(
            {id(row): (row.label + shift) % loss.classes for row, shift in zip(rows, shifts, strict=True)}
        )
