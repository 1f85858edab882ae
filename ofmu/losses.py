"""Loss terms that methods share. A loss is a sum over rows; its size per row makes global means exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ofmu.data.rows import Example

RowT = TypeVar("RowT", contravariant=True)

IGNORED = -100


class Loss(Protocol[RowT]):
    """A loss that is a ratio of sums over rows: Σ loss / Σ size, over all ranks' rows together."""

    def size(self, row: RowT) -> int:
        """Return the row's share of the denominator (tokens, or 1 for a whole row)."""

    def tokens(self, row: RowT) -> int:
        """Return how many tokens a forward pass of the row reads, for the ledger."""

    def total(self, module: Callable[..., Any], rows: Sequence[RowT], device: torch.device) -> Tensor:
        """Return the rows' summed loss, a differentiable scalar."""


class AnswerLoss:
    """Negative log-likelihood of the answers, averaged over the tokens of the global minibatch.

    Prompt tokens are masked (method.md, L_f and L_r). Averaging each rank's own tokens first would weigh ranks
    with few tokens too much, and results would change with the number of ranks.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def size(self, row: Example) -> int:
        """Return the number of answer tokens, EOS included."""
        return row.answer_length

    def tokens(self, row: Example) -> int:
        """Return the number of tokens of prompt and answer."""
        return len(row.input_ids)

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the summed NLL (nats) of the rows' answer tokens."""
        batch = collate(rows, self._pad_id, device)
        logits = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        labels = batch["labels"][:, 1:]
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )


def collate(rows: Sequence[Example], pad_id: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Pad rows on the right to a common length.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, each of shape (rows, longest); labels are −100 on prompt
        and padding.
    """
    longest = max(len(row.input_ids) for row in rows)
    shape = (len(rows), longest)
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        ids = torch.tensor(row.input_ids, dtype=torch.long)
        input_ids[index, : len(ids)] = ids
        attention_mask[index, : len(ids)] = 1
        labels[index, row.answer_start : len(ids)] = ids[row.answer_start :]
    return {
        "input_ids": input_ids.to(device),
        "attention_mask": attention_mask.to(device),
        "labels": labels.to(device),
    }
