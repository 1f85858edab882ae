"""Loss terms that methods share. A loss is a sum over rows; its size per row makes global means exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from ofmu.data.collate import IGNORE_INDEX, collate
from ofmu.data.rows import Example

RowT = TypeVar("RowT", contravariant=True)


class Loss(Protocol[RowT]):
    """A loss that is a ratio of sums over rows: Σ loss / Σ size, over all ranks' rows together."""

    def size(self, row: RowT) -> int:
        """Return the row's share of the denominator (tokens, or 1 for a whole row)."""

    def tokens(self, row: RowT) -> int:
        """Return how many tokens a forward pass of the row reads, for the tracker."""

    def total(self, module: Callable[..., Any], rows: Sequence[RowT], device: torch.device) -> Tensor:
        """Return the rows' summed loss, a differentiable scalar."""


class RowwiseLoss(Loss[RowT], Protocol[RowT]):
    """A loss that can also say what each row's own mean is."""

    def row_means(self, module: Callable[..., Any], rows: Sequence[RowT], device: torch.device) -> Tensor:
        """Return each row's loss in nats, averaged over its own tokens: shape (rows,), differentiable."""


class AnswerLoss:
    """Negative log-likelihood of the answers, averaged over the tokens of the global minibatch.

    Prompt tokens are masked (method.md, L_f and L_r). Averaging each rank's own tokens first would weigh ranks
    with few tokens too much, and results would change with the number of ranks.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def size(self, row: Example) -> int:
        """Return the number of answer tokens, EOS included."""
        return row.answer_length

    def tokens(self, row: Example) -> int:
        """Return the number of tokens of prompt and answer."""
        return len(row.input_ids)

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the summed NLL (nats) of the rows' answer tokens."""
        return answer_nll(module, rows, self.pad_id, device).sum()

    def row_means(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return each row's NLL per answer token in nats: shape (rows,), differentiable."""
        nll = answer_nll(module, rows, self.pad_id, device)
        return nll / torch.tensor([row.answer_length for row in rows], dtype=nll.dtype, device=nll.device)


def answer_nll(module: Callable[..., Any], rows: Sequence[Example], pad_id: int, device: torch.device) -> Tensor:
    """Return each row's NLL in nats, summed over its answer tokens (EOS included): shape (rows,), differentiable."""
    logits, labels = answer_logits(module, rows, pad_id, device)
    losses = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return losses.view(labels.shape).sum(1)


def answer_logits(
    module: Callable[..., Any], rows: Sequence[Example], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return what predicts each next token, and that token.

    Returns:
        Logits of shape (rows, longest − 1, vocabulary), at least in fp32, and labels of shape (rows, longest − 1),
        −100 on prompt and padding.
    """
    batch = collate(rows, pad_id, device)
    logits = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    logits = logits[:, :-1]
    return logits if logits.dtype == torch.float64 else logits.float(), batch["labels"][:, 1:]
