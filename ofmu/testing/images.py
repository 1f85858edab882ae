"""A tiny image problem: coloured noise of three classes, and a ResNet that knows the statistics of such images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from ofmu.models.config import ResNetConfig
from ofmu.testing.task import MemoryTask
from ofmu.vision.loss import ImageLoss
from ofmu.vision.model import build_classifier, freeze_statistics
from ofmu.vision.pixels import Normalisation
from ofmu.vision.rows import ImageRow

CLASSES = ("cat", "dog", "ship")
SHAPE = ResNetConfig(embedding_size=6, hidden_sizes=(6, 8), depths=(1, 1))


def tiny_images(count: int, seed: int, *, size: int = 16, labels: Sequence[int] = (0, 1, 2)) -> list[ImageRow]:
    """Return square images of noise. The channel of an image's class is brighter than the other two.

    Args:
        count: number of images.
        seed: seed of the noise.
        size: height and width in pixels.
        labels: the classes, which the images take in turn.
    """
    generator = np.random.default_rng(seed)
    found = []
    for index in range(count):
        label = labels[index % len(labels)]
        pixels = generator.integers(0, 160, (3, size, size))
        pixels[label] += 60
        found.append(ImageRow(torch.from_numpy(pixels.astype(np.uint8)), label))
    return found


def tiny_classifier(dtype: torch.dtype = torch.float32) -> Any:
    """Build a ResNet whose running statistics are those of some images, and frozen. All calls return the same one."""
    return copy.deepcopy(_classifier()).to(dtype)


@cache
def _classifier() -> Any:
    model = build_classifier(SHAPE, CLASSES, seed=0).train()
    with torch.no_grad():
        for seed in range(20):
            tiny_image_loss().logits(model, tiny_images(12, 100 + seed), torch.device("cpu"))
    freeze_statistics(model)
    return model


def tiny_image_loss() -> ImageLoss:
    """Return the cross-entropy of :func:`tiny_images`."""
    return ImageLoss(Normalisation(size=16), len(CLASSES))


def tiny_image_task(forget: int = 12, retain: int = 30) -> MemoryTask[ImageRow]:
    """Return a task of ``forget`` forget images and ``retain`` retain images."""
    return MemoryTask("vision", tiny_images(forget, 1), tiny_images(retain, 2), tiny_image_loss())
