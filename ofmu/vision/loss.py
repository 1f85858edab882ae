"""Cross-entropy of images, as a sum over rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ofmu.vision.pixels import Normalisation, pixels_in_unit_range
from ofmu.vision.rows import ImageRow


class ImageLoss:
    """Cross-entropy in nats, averaged over the rows of the global minibatch (method.md, L_f and L_r)."""

    def __init__(self, normalisation: Normalisation, classes: int, labels: Mapping[int, int] | None = None) -> None:
        self.normalisation, self.classes = normalisation, classes
        self._labels = labels

    def relabelled(self, labels: Mapping[int, int]) -> ImageLoss:
        """Return this loss with the labels of ``labels`` (by ``id(row)``) in place of the rows' own."""
        return ImageLoss(self.normalisation, self.classes, labels)

    def size(self, row: ImageRow) -> int:
        """Return 1: the mean is over rows."""
        return 1

    def tokens(self, row: ImageRow) -> int:
        """Return 1: the ledger counts images."""
        return 1

    def labels(self, rows: Sequence[ImageRow], device: torch.device) -> Tensor:
        """Return the rows' labels: shape (rows,), int64."""
        given = self._labels
        found = [row.label if given is None else given[id(row)] for row in rows]
        return torch.tensor(found, dtype=torch.long, device=device)

    def shares(self, module: Any, rows: Sequence[ImageRow], device: torch.device) -> Tensor:
        """Return the rows' pixels between 0 and 1 in the module's own precision."""
        return pixels_in_unit_range(rows, device, next(module.parameters()).dtype)

    def logits_of(self, module: Callable[..., Any], shares: Tensor) -> Tensor:
        """Return logits of shape (rows, classes), at least in fp32."""
        logits: Tensor = module(pixel_values=self.normalisation.inputs(shares)).logits
        return logits if logits.dtype == torch.float64 else logits.float()

    def logits(self, module: Callable[..., Any], rows: Sequence[ImageRow], device: torch.device) -> Tensor:
        """Return logits of shape (rows, classes), at least in fp32."""
        return self.logits_of(module, self.shares(module, rows, device))

    def total(self, module: Callable[..., Any], rows: Sequence[ImageRow], device: torch.device) -> Tensor:
        """Return the rows' summed cross-entropy."""
        return self.row_means(module, rows, device).sum()

    def row_means(self, module: Callable[..., Any], rows: Sequence[ImageRow], device: torch.device) -> Tensor:
        """Return each row's cross-entropy in nats: shape (rows,), differentiable."""
        return functional.cross_entropy(self.logits(module, rows, device), self.labels(rows, device), reduction="none")


def image_loss(task: Any) -> ImageLoss:
    """Return a vision task's loss as what it is; methods for images alone need its labels and classes."""
    loss = task.loss
    if not isinstance(loss, ImageLoss):
        raise TypeError(f"a vision task's loss is an ImageLoss, not a {type(loss).__name__}")
    return loss
