"""Teacher forcing: losses and token matches of given answers, from one forward pass each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ofmu.data.encoding import Tokenizer, pad_id
from ofmu.data.rows import Example
from ofmu.evaluation.metrics import exact_memorization, extraction_strength
from ofmu.evaluation.sharding import Shard, global_batches, run_sharded


@dataclass(frozen=True, slots=True)
class ForcedScore:
    """One answer: summed NLL in nats and token count (EOS included), and its token matches (EOS left out)."""

    nll: float
    tokens: int
    extraction_strength: float | None
    exact_memorization: float | None


@torch.no_grad()
def score_examples(
    model: Any, tokenizer: Tokenizer, examples: Sequence[Example], batch_size: int, shard: Shard
) -> list[ForcedScore]:
    """Score every example's answer; the model must be in evaluation mode."""
    batches = global_batches([len(example.input_ids) for example in examples], batch_size)

    def run(indices: list[int]) -> list[ForcedScore]:
        return _score_batch(model, tokenizer, [examples[index] for index in indices])

    return run_sharded(batches, run, shard)


def _score_batch(model: Any, tokenizer: Tokenizer, examples: Sequence[Example]) -> list[ForcedScore]:
    device = next(model.parameters()).device
    width = max(len(example.input_ids) for example in examples)
    ids = torch.full((len(examples), width), pad_id(tokenizer), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        mask[row, : len(example.input_ids)] = 1
    ids, mask = ids.to(device), mask.to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return [
        _score_answer(logits[row], ids[row], example, tokenizer.eos_token_id) for row, example in enumerate(examples)
    ]


def _score_answer(logits: torch.Tensor, ids: torch.Tensor, example: Example, eos: int) -> ForcedScore:
    start, end = example.answer_start, len(example.input_ids)
    # One row at a time: a float32 copy of the whole batch's logits would double the peak memory of a large vocabulary.
    predicted, labels = logits[start - 1 : end - 1].float(), ids[start:end]
    chosen = predicted.gather(-1, labels[:, None])[:, 0]
    nll = (torch.logsumexp(predicted, dim=-1) - chosen).double().sum()
    matches = (predicted.argmax(dim=-1) == labels).cpu().numpy()
    if example.input_ids[-1] == eos:
        matches = matches[:-1]
    if len(matches) == 0:
        return ForcedScore(float(nll), end - start, None, None)
    return ForcedScore(float(nll), end - start, extraction_strength(matches), exact_memorization(matches))
