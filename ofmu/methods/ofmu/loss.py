"""A forget loss that ends: ascent that lets go of a row once the row is forgotten.

The paper's L_f has no upper bound (arXiv 2509.22483), so its ascent goes on pushing rows that are long forgotten, and
each such push costs utility. Here a row's mean loss ℓ counts as

    ℓ̃ = δ + (1/b) log σ(b (ℓ − δ)),    dℓ̃/dℓ = σ(b (δ − ℓ)),

which is ℓ far below the level δ and δ far above it. Up to a constant this is the forget term of SimNPO (Fan et al.,
arXiv 2410.07163) with its inverse temperature b and margin δ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ofmu.losses import RowwiseLoss

RowT = TypeVar("RowT")


class BoundedLoss(Generic[RowT]):
    """ℓ̃ averaged over the rows of the global minibatch, each row counting alike whatever its length.

    Args:
        loss: what is bounded.
        level: δ, nats per token (language) or per image.
        sharpness: b, per nat; the gate closes over a width of about 4/b around the level.
    """

    def __init__(self, loss: RowwiseLoss[RowT], level: float, sharpness: float) -> None:
        self._loss, self._level, self._sharpness = loss, level, sharpness

    def size(self, row: RowT) -> int:
        """Return 1: the mean is over rows."""
        return 1

    def tokens(self, row: RowT) -> int:
        """Return how many tokens a forward pass of the row reads."""
        return self._loss.tokens(row)

    def total(self, module: Callable[..., Any], rows: Sequence[RowT], device: torch.device) -> Tensor:
        """Return the rows' summed ℓ̃ in nats."""
        means = self._loss.row_means(module, rows, device)
        return (self._level + functional.logsigmoid(self._sharpness * (means - self._level)) / self._sharpness).sum()


def gate(bounded: float, level: float, sharpness: float) -> float:
    """Return how far from forgotten a minibatch is: near 1 well below the level δ, 0 well above it.

    ``bounded`` is the minibatch's :class:`BoundedLoss`. Each row's exp(b(ℓ̃ − δ)) is σ(b(ℓ − δ)), so this is one minus
    the rows' geometric mean of σ(b(ℓ − δ)): the mean of dℓ̃/dℓ where all rows are alike, without a further pass.
    """
    return max(0.0, -math.expm1(sharpness * (bounded - level)))
