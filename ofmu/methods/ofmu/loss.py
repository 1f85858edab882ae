"""The clamped forget loss. Its ascent ends once a row is forgotten.

The paper's L_f has no upper bound (arXiv 2509.22483). Its ascent goes on after a row is forgotten, and each further
step costs utility. Here a row's mean loss ℓ is replaced by the soft clamp

    ℓ̃ = δ + (1/b) log σ(b (ℓ − δ)),    dℓ̃/dℓ = σ(b (δ − ℓ)).

Far below the margin δ, ℓ̃ equals ℓ. Far above δ, ℓ̃ equals δ. Up to a constant, ℓ̃ is the forget term of SimNPO (Fan
et al., arXiv 2410.07163) with inverse temperature b and margin δ.
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


class ClampedLoss(Generic[RowT]):
    """The mean of ℓ̃ over the rows of the global minibatch. Every row has the same weight, whatever its length.

    Args:
        loss: the loss to clamp.
        margin: δ, in nats per token (language) or per image.
        sharpness: b, per nat. The clamp acts over a width of about 4/b around the margin.
    """

    def __init__(self, loss: RowwiseLoss[RowT], margin: float, sharpness: float) -> None:
        self._loss, self._margin, self._sharpness = loss, margin, sharpness

    def size(self, row: RowT) -> int:
        """Return 1, since the mean is over rows."""
        return 1

    def tokens(self, row: RowT) -> int:
        """Return the number of tokens that a forward pass of the row reads."""
        return self._loss.tokens(row)

    def total(self, module: Callable[..., Any], rows: Sequence[RowT], device: torch.device) -> Tensor:
        """Return the sum of ℓ̃ over the rows, in nats."""
        means = self._loss.row_means(module, rows, device)
        return (self._margin + functional.logsigmoid(self._sharpness * (means - self._margin)) / self._sharpness).sum()


def unforgotten_weight(clamped: float, margin: float, sharpness: float) -> float:
    """Return how far a minibatch is from forgotten: near 1 well below the margin, near 0 well above the margin.

    Each row's exp(b(ℓ̃ − δ)) equals σ(b(ℓ − δ)). So the result is one minus the geometric mean of σ(b(ℓ − δ)) over the
    rows. If all rows are alike, the result is the mean of dℓ̃/dℓ. No further pass is needed.

    Args:
        clamped: the minibatch's :class:`ClampedLoss`.
        margin: δ.
        sharpness: b.
    """
    return max(0.0, -math.expm1(sharpness * (clamped - margin)))
