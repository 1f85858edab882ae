"""Cross-entropy of images as a sum over rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ofmu.vision.pixels import Normalisation, pixels_in_unit_range
from ofmu.vision.rows import ImageRow


class ImageLoss:
    """L_f and L_r of images: the cross-entropy in nats, averaged over the rows of the global minibatch.

    Args:
        normalisation: how pixels become inputs of the classifier.
        classes: number of classes.
        labels: labels by ``id(row)`` that replace the labels of the rows. None: the labels of the rows.
    """

    def __init__(self, normalisation: Normalisation, classes: int, labels: Mapping[int, int] | None = None) -> None:
        self.normalisation, self.classes = normalisation, classes
        self._labels = labels

    def relabelled(self, labels: Mapping[int, int]) -> ImageLoss:
        """Return this loss with other labels, by ``id(row)``."""
        return ImageLoss(self.normalisation, self.classes, labels)

    def size(self, row: ImageRow) -> int:
        """Return 1, since the mean is over rows."""
        return 1

    def tokens(self, row: ImageRow) -> int:
        """Return 1, since the cost tracker counts images."""
        return 1

    def labels(self, rows: Sequence[ImageRow], device: torch.device) -> Tensor:
        """Return the labels of rows: shape (rows,), int64."""
        replaced = self._labels
        labels = [row.label if replaced is None else replaced[id(row)] for row in rows]
        return torch.tensor(labels, dtype=torch.long, device=device)

    def pixels(self, module: Any, rows: Sequence[ImageRow], device: torch.device) -> Tensor:
        """Return the pixels of rows, from 0 to 1, in the module's dtype: shape (rows, 3, height, width)."""
        return pixels_in_unit_range(rows, device, next(module.parameters()).dtype)

    def logits_of_pixels(self, module: Callable[..., Any], pixels: Tensor) -> Tensor:
        """Return the logits of pixels from 0 to 1: shape (rows, classes), fp32 or fp64."""
        logits: Tensor = module(pixel_values=self.normalisation.inputs(pixels)).logits
        return logits if logits.dtype == torch.float64 else logits.float()

    def logits(self, module: Callable[..., Any], rows: Sequence[ImageRow], device: torch.device) -> Tensor:
        """Return the logits of rows: shape (rows, classes), fp32 or fp64."""
        return self.logits_of_pixels(module, self.pixels(module, rows, device))

    def total(self, module: Callable[..., Any], rows: Sequence[ImageRow], device: torch.device) -> Tensor:
        """Return the sum of the rows' cross-entropies, in nats."""
        return self.row_means(module, rows, device).sum()

    def row_means(self, module: Callable[..., Any], rows: Sequence[ImageRow], device: torch.device) -> Tensor:
        """Return the cross-entropy of each row, in nats: shape (rows,), differentiable."""
        return functional.cross_entropy(self.logits(module, rows, device), self.labels(rows, device), reduction="none")


def image_loss(task: Any) -> ImageLoss:
    """Return the loss of a vision task. Methods for images read its labels and classes.

    Raises:
        TypeError: the task's loss is not an ImageLoss.
    """
    loss = task.loss
    if not isinstance(loss, ImageLoss):
        raise TypeError(f"a vision task's loss is an ImageLoss, not a {type(loss).__name__}")
    return loss
