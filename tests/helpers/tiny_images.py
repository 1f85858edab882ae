"""A small image problem: coloured noise of three classes, and a ResNet whose statistics fit such images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ofmu.models.config import ResNetConfig
from ofmu.vision.loss import ImageLoss
from ofmu.vision.model import build_classifier, freeze_statistics
from ofmu.vision.pixels import Normalisation
from ofmu.vision.rows import ImageRow

CLASSES = ("cat", "dog", "ship")
SHAPE = ResNetConfig(embedding_size=6, hidden_sizes=(6, 8), depths=(1, 1))


def images(count: int, seed: int, *, size: int = 16, labels: tuple[int, ...] = (0, 1, 2)) -> list[ImageRow]:
    """Return noise. The channel of the class is brighter than the other channels."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        label = labels[index % len(labels)]
        pixels = generator.integers(0, 160, (3, size, size))
        pixels[label] += 60
        rows.append(ImageRow(torch.from_numpy(pixels.astype(np.uint8)), label))
    return rows


def tiny_classifier(dtype: torch.dtype = torch.float32) -> Any:
    """Return a ResNet with the frozen running statistics of some images."""
    model = build_classifier(SHAPE, CLASSES, seed=0).train()
    with torch.no_grad():
        for seed in range(20):
            tiny_loss().logits(model, images(12, 100 + seed), torch.device("cpu"))
    freeze_statistics(model)
    return model.to(dtype)


def tiny_loss() -> ImageLoss:
    return ImageLoss(Normalisation(size=16), len(CLASSES))


class TinyImageTask:
    """The attributes of a vision task that methods read."""

    kind = "vision"
    content_hash = "tiny"

    def __init__(self, forget: int = 12, retain: int = 30) -> None:
        self.forget_rows = images(forget, 1)
        self.retain_rows = images(retain, 2)
        self.loss = tiny_loss()


def plain_logits(model: Any, rows: list[ImageRow]) -> torch.Tensor:
    """Return the logits by their definition. The inputs are (pixels / 255 − 0.5) · 4."""
    inputs = torch.stack([(row.pixels.double() / 255 - 0.5) * 4 for row in rows])
    return model(pixel_values=inputs).logits


def labels_of(rows: list[ImageRow]) -> torch.Tensor:
    return torch.tensor([row.label for row in rows])
