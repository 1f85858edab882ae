"""The losses L_f and L_r of text, and the protocol of all losses.

A loss is a sum over rows, divided by a sum of sizes. Both sums run over the rows of all ranks, so means are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ofmu.data.collate import IGNORE_INDEX, collate
from ofmu.data.rows import Example
from ofmu.models.chunked_logits import ChunkedLogits, layer_for_chunks, same_storage
from ofmu.vectors.direct import replaced_forward

RowT = TypeVar("RowT", contravariant=True)


class Loss(Protocol[RowT]):
    """A loss that is a ratio of sums over the rows of all ranks: Σ loss / Σ size."""

    def size(self, row: RowT) -> int:
        """Return the row's part of the denominator: a number of tokens, or 1 for a mean over rows."""

    def tokens(self, row: RowT) -> int:
        """Return the number of tokens that a forward pass of the row reads, for the cost tracker."""

    def total(self, module: Callable[..., Any], rows: Sequence[RowT], device: torch.device) -> Tensor:
        """Return the summed loss of the rows, a differentiable scalar."""


class RowwiseLoss(Loss[RowT], Protocol[RowT]):
    """A loss that also gives the mean of each row."""

    def row_means(self, module: Callable[..., Any], rows: Sequence[RowT], device: torch.device) -> Tensor:
        """Return the loss of each row in nats, averaged over the tokens of the row: shape (rows,), differentiable."""


class AnswerTokenMean:
    """The denominator of a loss that is averaged over the answer tokens of the global minibatch."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def size(self, row: Example) -> int:
        """Return the number of answer tokens, EOS included."""
        return row.answer_length

    def tokens(self, row: Example) -> int:
        """Return the number of tokens of prompt and answer."""
        return len(row.input_ids)


class AnswerLoss(AnswerTokenMean):
    """L_f and L_r of text: the negative log-likelihood (NLL) of the answers, averaged over answer tokens.

    Prompt tokens are masked. The mean is over the global minibatch. A mean per rank would give a token of a rank with
    few tokens too much weight, and the result would depend on the number of ranks.
    """

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the summed NLL of the rows' answer tokens in nats."""
        return answer_nll(module, rows, self.pad_id, device).sum()

    def row_means(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the NLL per answer token of each row in nats: shape (rows,), differentiable."""
        nll = answer_nll(module, rows, self.pad_id, device)
        return nll / torch.tensor([row.answer_length for row in rows], dtype=nll.dtype, device=nll.device)


def answer_nll(module: Callable[..., Any], rows: Sequence[Example], pad_id: int, device: torch.device) -> Tensor:
    """Return the NLL of each row in nats, summed over answer tokens (EOS included): shape (rows,), differentiable."""
    layer = layer_for_chunks(module, padded_tokens(rows))
    if layer is not None:
        nll = answer_values(module, layer, rows, pad_id, device, lambda logits, labels: logits.nll(labels))
        longest = padded_tokens(rows) // len(rows)
        padded = nll.new_zeros(len(rows) * longest).index_copy(0, answer_positions(rows, longest).to(device), nll)
        return padded.view(len(rows), longest).sum(1)
    logits, labels = answer_logits(module, rows, pad_id, device)
    losses = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return losses.view(labels.shape).sum(1)


def answer_logits(
    module: Callable[..., Any], rows: Sequence[Example], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the logits that predict each next token, and the next tokens as labels.

    Returns:
        Logits of shape (rows, longest − 1, vocabulary), at least in fp32. Labels of shape (rows, longest − 1), which
        are −100 on prompt and padding.
    """
    batch = collate(rows, pad_id, device)
    logits = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    logits = logits[:, :-1]
    return logits if logits.dtype == torch.float64 else logits.float(), batch["labels"][:, 1:]


def answer_values(
    module: Callable[..., Any],
    layer: nn.Linear,
    rows: Sequence[Example],
    pad_id: int,
    device: torch.device,
    compute: Callable[[ChunkedLogits, Tensor], Tensor],
) -> Tensor:
    """Return ``compute(logits, labels)`` of the answer tokens, whose logits are never formed as a whole.

    Args:
        module: the model.
        layer: its output layer, as :func:`ofmu.models.chunked_logits.layer_for_chunks` gives it.
        rows: the rows. The answer tokens of one row follow those of the row before.
        pad_id: the padding token.
        device: the device of the model.
        compute: returns one value per answer token, or several: shape (answer tokens,) or (answer tokens, values).
    """
    batch = collate(rows, pad_id, device)
    longest = batch["input_ids"].shape[1]
    # Indices that are made on the host need no wait for the device, which a mask would need.
    positions = answer_positions(rows, longest).to(device)
    labels = batch["labels"].flatten()[positions + 1]
    found: list[Tensor] = []

    def values(hidden: Tensor) -> Tensor:
        chosen = hidden.flatten(0, 1).index_select(0, positions)
        found.append(compute(ChunkedLogits(chosen, layer), labels))
        return found[0].view(1, len(chosen), -1)

    with replaced_forward(layer, values):
        output = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    if not same_storage(output, found[0]):
        raise RuntimeError("the model changed what its output layer returned")
    # DeepSpeed's hooks are on the model's output, so gradients must pass through this output.
    values_of_tokens: Tensor = output.view(found[0].shape)
    return values_of_tokens


def padded_tokens(rows: Sequence[Example]) -> int:
    """Return the number of tokens of a batch of these rows, padding included."""
    return len(rows) * max(len(row.input_ids) for row in rows)


def answer_positions(rows: Sequence[Example], longest: int) -> Tensor:
    """Return the indices, in a flattened batch of this width, of the tokens that predict an answer token."""
    return torch.cat(
        [
            torch.arange(number * longest + max(row.answer_start, 1) - 1, number * longest + len(row.input_ids) - 1)
            for number, row in enumerate(rows)
        ]
    )
