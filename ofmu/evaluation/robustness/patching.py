"""Activation patching: the log-probability of a fact in one model with hidden states of another.

The hidden states are what a block returns: the residual stream after its attention and its feed-forward part. The
state at position p predicts token p + 1, so the states of a fact are those at the positions before its tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ofmu.data.collate import collate
from ofmu.errors import ModelError
from ofmu.evaluation.robustness.facts import Fact
from ofmu.models.blocks import decoder_blocks, editing, recording
from ofmu.models.chunked_logits import ChunkedLogits, layer_for_chunks
from ofmu.vectors.direct import replaced_forward


class FactBatch:
    """A padded batch of facts, and where their hidden states are."""

    def __init__(self, facts: Sequence[Fact], pad: int, device: torch.device) -> None:
        self._pad = pad
        self.sizes = [fact.stop - fact.start for fact in facts]
        batch = collate([fact.example for fact in facts], pad, device)
        self.inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        places = [torch.arange(fact.start - 1, fact.stop - 1) for fact in facts]
        self.rows = torch.repeat_interleave(torch.arange(len(facts)), torch.tensor(self.sizes)).to(device)
        """The row of each token of a fact, shape (tokens of all facts,)."""
        self.places = torch.cat(places).to(device)
        """The position of its hidden state."""
        self.labels = torch.tensor([token for fact in facts for token in fact.tokens], device=device)

    @property
    def tokens(self) -> int:
        """Tokens that a forward pass reads, padding included."""
        return self.inputs["input_ids"].numel()

    def alone(self) -> FactBatch:
        """Return a batch that holds the tokens of the facts only, at the first positions."""
        batch = object.__new__(FactBatch)
        batch._pad, batch.sizes, batch.rows, batch.labels = self._pad, self.sizes, self.rows, self.labels
        batch.places = torch.cat([torch.arange(size) for size in self.sizes]).to(self.rows)
        ids = torch.full((len(self.sizes), max(self.sizes)), self._pad).to(self.labels)
        ids[batch.rows, batch.places] = self.labels
        batch.inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return batch


def fact_states(model: Any, batch: FactBatch) -> Tensor:
    """Return the hidden states behind every block, shape (blocks, tokens of all facts, width).

    Raises:
        ModelError: the model has no list of blocks, or does not run each block once.
    """
    blocks = decoder_blocks(model)
    # Logits are not needed, and with a large vocabulary they take most of the memory.
    options = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(type(model).forward).parameters else {}
    with recording(blocks, lambda hidden: hidden[batch.rows, batch.places]) as states:
        model(**batch.inputs, use_cache=False, **options)
    if len(states) != len(blocks):
        raise ModelError(f"{type(model).__name__} runs its {len(blocks)} blocks {len(states)} times in a forward pass")
    return torch.stack(states)


def log_probabilities(model: Any, batch: FactBatch, block: int | None = None, states: Tensor | None = None) -> Tensor:
    """Return the mean log-probability of each fact's tokens, in nats per token, shape (facts,), in float64.

    Args:
        model: a causal language model.
        batch: the facts.
        block: index of the block whose hidden states are patched. None: the model is not patched.
        states: what stands in their place at the positions of the facts, shape (tokens of all facts, width).
    """
    patch: AbstractContextManager[None] = nullcontext()
    if block is not None and states is not None:
        patch = editing(decoder_blocks(model)[block], lambda hidden: _patched(hidden, batch, states))
    with patch:
        return torch.stack(_means(model, batch)).cpu()


def lens_log_probabilities(model: Any, batch: FactBatch, states: Tensor) -> Tensor:
    """Return what the model's final norm and output layer read from hidden states, as :func:`log_probabilities`.

    The states stand in for what the last block returns. Whatever the model does behind that block, such as scaling its
    logits, is done to them too. The blocks run on the tokens of the facts only, and their results are not used.
    """
    return log_probabilities(model, batch.alone(), len(decoder_blocks(model)) - 1, states)


def _patched(hidden: Tensor, batch: FactBatch, states: Tensor) -> Tensor:
    hidden = hidden.clone()
    hidden[batch.rows, batch.places] = states.to(hidden)
    return hidden


def _means(model: Any, batch: FactBatch) -> list[Tensor]:
    """Return each fact's mean log-probability. If logits are large, those of one fact are formed at a time."""
    layer = layer_for_chunks(model, batch.tokens)
    labels = torch.split(batch.labels, batch.sizes)
    if layer is None:
        logits: Tensor = model(**batch.inputs, use_cache=False).logits
        return list(map(_mean, torch.split(logits[batch.rows, batch.places], batch.sizes), labels))
    found: list[Tensor] = []

    def at_the_facts(hidden: Tensor) -> Tensor:
        states = torch.split(hidden[batch.rows, batch.places], batch.sizes)
        found.extend(
            _mean(ChunkedLogits(of_fact, layer).whole(), ids) for of_fact, ids in zip(states, labels, strict=True)
        )
        return hidden[..., :1]

    with replaced_forward(layer, at_the_facts):
        model(**batch.inputs, use_cache=False)
    return found


def _mean(logits: Tensor, labels: Tensor) -> Tensor:
    log_probs = torch.log_softmax(logits.float(), dim=-1).gather(1, labels[:, None])
    return log_probs.double().mean()
