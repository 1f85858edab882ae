"""Random labelling: forget images learn wrong labels while retain images keep theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from ofmu.methods import register
from ofmu.methods.single_loop import SingleLoopConfig, SingleLoopMethod
from ofmu.vision.loss import ImageLoss, image_loss
from ofmu.vision.rows import ImageRow


class RandomLabelsConfig(SingleLoopConfig):
    """Random labelling's settings."""

    name: Literal["randomlabels"] = "randomlabels"


@register("randomlabels")
class RandomLabels(SingleLoopMethod[ImageRow]):
    """L = γ CE(forget, y′) + α CE(retain, y), y′ ≠ y drawn anew for every minibatch, uniformly from the other classes.

    The public implementation draws y′ from all classes and takes the two sets in turn; the paper's equation, which is
    followed here, excludes y and adds the two losses.
    """

    Config: ClassVar[type[SingleLoopConfig]] = RandomLabelsConfig
    title = "Random labels"
    source = "Golatkar et al., arXiv 1911.04933; Fan et al. (SalUn), arXiv 2310.12508, section 4"
    tasks = frozenset({"vision"})
    published: ClassVar = {"lr": 0.01, "update": "sgd", "forget_weight": 1.0, "retain_weight": 1.0}

    def forget_loss(self, rows: Sequence[ImageRow]) -> ImageLoss:
        """Return the cross-entropy with this minibatch's random labels, the same on every rank."""
        loss = image_loss(self.task)
        generator = np.random.default_rng([self.context.seed, self.steps_taken])
        shifts = generator.integers(1, loss.classes, size=len(rows)).tolist()
        return loss.relabelled(
            {id(row): (row.label + shift) % loss.classes for row, shift in zip(rows, shifts, strict=True)}
        )
