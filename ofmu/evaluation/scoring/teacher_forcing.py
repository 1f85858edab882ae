"""Teacher forcing: losses, token matches and token statistics of given answers, all from the same forward passes.

A prompt that several answers share is read once. Tokens are counted as they are computed, padding included.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from ofmu.data.encoding import Tokenizer, pad_id
from ofmu.data.rows import Example
from ofmu.evaluation.metrics.formulas import exact_memorization, extraction_strength
from ofmu.evaluation.metrics.membership import min_k, min_k_plus
from ofmu.evaluation.scoring.kv_cache import continue_prompts, read_prompts, reads_in_parts
from ofmu.evaluation.scoring.sharding import Shard, batches_by_label, global_batches, run_sharded


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """One answer: summed NLL in nats and token count (EOS included), and its token matches (EOS left out)."""

    nll: float
    tokens: int
    extraction_strength: float | None
    exact_memorization: float | None
    min_k: float | None = None
    """:func:`ofmu.evaluation.metrics.membership.min_k` of the answer's tokens (EOS included), where asked for."""
    min_k_plus: float | None = None


@torch.no_grad()
def score_examples(
    model: Any,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    batch_size: int,
    shard: Shard,
    *,
    labels: Sequence[str] | None = None,
    detailed: Collection[int] = (),
) -> tuple[list[AnswerScore], int]:
    """Score every example's answer; the model must be in evaluation mode.

    Args:
        labels: The set of each example; only examples of one set share batches. None: all are of one set.
        detailed: Indices of the examples whose token statistics are wanted too.

    Returns:
        The scores in the examples' order, and the tokens (padding included) that all ranks' forward passes read.
    """
    wanted, in_parts = frozenset(detailed), reads_in_parts(model)
    forward = _logits_in_parts if in_parts else _logits_of_whole

    def batches_of(indices: list[int]) -> list[list[int]]:
        members = [examples[index] for index in indices]
        lengths = [len(example.input_ids) for example in members]
        made = prompt_batches(members, batch_size) if in_parts else global_batches(lengths, batch_size)
        return [[indices[place] for place in batch] for batch in made]

    batches = batches_by_label(labels or [""] * len(examples), batches_of)

    def run(indices: list[int]) -> list[AnswerScore]:
        batch = [examples[index] for index in indices]
        logits = forward(model, batch, pad_id(tokenizer))
        return [
            _score_answer(row, example, tokenizer.eos_token_id, index in wanted)
            for index, example, row in zip(indices, batch, logits, strict=True)
        ]

    scores = run_sharded(batches, run, shard)
    return scores, sum(batch_tokens([examples[index] for index in batch], in_parts) for batch in batches)


def prompt_batches(examples: Sequence[Example], batch_size: int) -> list[list[int]]:
    """Return batches of at most ``batch_size`` indices, those with the same prompt beside one another.

    Prompts go by the length of their longest answer, which decides most of the padding; ties keep their order.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(_prompt(example), []).append(index)
    ordered = sorted(groups.items(), key=lambda item: (_longest([examples[i] for i in item[1]]), len(item[0])))
    batches: list[list[int]] = [[]]
    for _, members in ordered:
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            if len(batches[-1]) + len(part) > batch_size:
                batches.append([])
            batches[-1].extend(part)
    return [batch for batch in batches if batch]


def batch_tokens(batch: Sequence[Example], in_parts: bool) -> int:
    """Return the tokens that the forward passes of one batch read, padding included."""
    if not in_parts:
        return len(batch) * max(len(example.input_ids) for example in batch)
    prompts = [prompt for prompt, _ in groupby(map(_prompt, batch))]
    return len(prompts) * max(map(len, prompts)) + len(batch) * _longest(batch)


def _prompt(example: Example) -> tuple[int, ...]:
    return example.input_ids[: example.answer_start]


def _longest(examples: Sequence[Example]) -> int:
    """Return how many tokens the longest answer feeds: its last one is only predicted, but every row feeds one."""
    return max(1, max(example.answer_length for example in examples) - 1)


def _logits_in_parts(model: Any, batch: Sequence[Example], pad: int) -> Iterator[torch.Tensor]:
    """Yield each row's logits at its answer tokens, shape (answer tokens, vocabulary): prompts first, then answers."""
    runs = [(prompt, len(list(members))) for prompt, members in groupby(map(_prompt, batch))]
    read = read_prompts(model, [prompt for prompt, _ in runs], pad)
    device = read.logits.device
    sizes = torch.tensor([size for _, size in runs])
    read.select(torch.repeat_interleave(torch.arange(len(runs)), sizes).to(device))
    ids = torch.full((len(batch), _longest(batch)), pad, dtype=torch.long)
    for row, example in enumerate(batch):
        ids[row, : example.answer_length - 1] = torch.tensor(example.input_ids[example.answer_start : -1])
    first, rest = read.logits, continue_prompts(model, read, ids.to(device))
    for row, example in enumerate(batch):
        yield torch.cat([first[row : row + 1], rest[row, : example.answer_length - 1]])


def _logits_of_whole(model: Any, batch: Sequence[Example], pad: int) -> Iterator[torch.Tensor]:
    """Yield the same from one pass over prompts and answers together."""
    device = next(model.parameters()).device
    width = max(len(example.input_ids) for example in batch)
    ids = torch.full((len(batch), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(batch):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        mask[row, : len(example.input_ids)] = 1
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    for row, example in enumerate(batch):
        yield logits[row, example.answer_start - 1 : len(example.input_ids) - 1]


def _score_answer(logits: torch.Tensor, example: Example, eos: int, detailed: bool) -> AnswerScore:
    # One row at a time: a float32 copy of the whole batch's logits would double the peak memory of a large vocabulary.
    predicted = logits.float()
    labels = torch.tensor(example.input_ids[example.answer_start :], device=predicted.device)
    chosen = predicted.gather(-1, labels[:, None])[:, 0]
    nll = float((torch.logsumexp(predicted, dim=-1) - chosen).double().sum())
    statistics = _token_statistics(predicted, labels) if detailed else (None, None)
    matches = (predicted.argmax(dim=-1) == labels).cpu().numpy()
    if example.input_ids[-1] == eos:
        matches = matches[:-1]
    if len(matches) == 0:
        return AnswerScore(nll, len(labels), None, None, *statistics)
    return AnswerScore(nll, len(labels), extraction_strength(matches), exact_memorization(matches), *statistics)


def _token_statistics(predicted: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    # Bounded, so that a token of probability 0 adds 0 and not NaN to the moments.
    log_probs = torch.log_softmax(predicted, dim=-1).clamp(min=-1e4).double()
    probs = log_probs.exp()
    means = (probs * log_probs).sum(dim=-1)
    deviations = (probs * (log_probs - means[:, None]).square()).sum(dim=-1).sqrt()
    chosen = log_probs.gather(-1, labels[:, None])[:, 0]
    log_probs_of_answer, *moments = (tensor.cpu().numpy() for tensor in (chosen, means, deviations))
    return min_k(log_probs_of_answer), min_k_plus(log_probs_of_answer, moments[0], moments[1])
