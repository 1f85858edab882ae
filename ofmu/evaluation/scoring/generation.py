"""Greedy answers to the questions of the evaluation sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer, encode_prompt, pad_id
from ofmu.errors import DataError
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.scoring.kv_cache import continue_prompts, read_prompts, reads_in_parts
from ofmu.evaluation.scoring.sharding import Shard, batches_by_label, global_batches, run_sharded

DROPPED = 0.25
"""Share of a batch's rows that have to be finished before they are taken out, which copies the others' cache."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A greedy answer without its EOS, and the tokens, padding included, that were read to make it."""

    text: str
    tokens: int


@torch.no_grad()
def generate_answers(
    model: Any,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    evaluation: EvaluationConfig,
    encoding: DataConfig,
    shard: Shard,
    labels: Sequence[str] | None = None,
) -> list[Generated]:
    """Return the greedy answer to each question, up to EOS or ``evaluation.max_new_tokens``.

    Questions share batches with those of the same label (their set) only.

    Raises:
        DataError: a prompt fills all positions that the model has.
    """
    if not questions:
        return []
    prompts = [encode_prompt(tokenizer, question, encoding) for question in questions]

    def batches_of(indices: list[int]) -> list[list[int]]:
        made = global_batches([len(prompts[index]) for index in indices], evaluation.batch_size)
        return [[indices[place] for place in batch] for batch in made]

    batches = batches_by_label(labels or [""] * len(questions), batches_of)
    new_tokens = _room(model, prompts, questions, evaluation.max_new_tokens)
    decode = _greedy if reads_in_parts(model) else _library_greedy
    synced = shard.synchronized and shard.world_size > 1

    def run(indices: list[int]) -> list[Generated]:
        return decode(model, tokenizer, [prompts[index] for index in indices], new_tokens, synced)

    return run_sharded(batches, run, shard)


def _room(model: Any, prompts: Sequence[list[int]], questions: Sequence[str], wanted: int) -> int:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return wanted
    longest = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    room = int(positions) - len(prompts[longest])
    if room < 1:
        raise DataError(
            f"The prompt of the question '{questions[longest][:60]}' fills all {positions} positions of the model: "
            "shorten the question or set evaluation.rouge to false"
        )
    return min(wanted, room)


def _greedy(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[list[int]], new_tokens: int, synced: bool
) -> list[Generated]:
    """Decode token by token; rows that reached EOS leave the batch.

    ``synced``: every forward pass is a collective, so this rank goes on until all ranks are done.
    """
    eos, width = int(tokenizer.eos_token_id), max(map(len, prompts))
    read = read_prompts(model, prompts, pad_id(tokenizer))
    places = list(range(len(prompts)))  # which row of ``prompts`` each row of the batch is
    ids: list[list[int]] = [[] for _ in prompts]
    done, cost = [False] * len(prompts), [width] * len(prompts)
    logits = read.logits
    for step in range(new_tokens):
        best = logits.argmax(dim=-1)
        for row, token in enumerate(best.tolist()):
            done[places[row]] |= token == eos
            if not done[places[row]]:
                ids[places[row]].append(token)
        if step == new_tokens - 1 or _all_done(all(done), synced, best.device):
            break
        live = [row for row, where in enumerate(places) if not done[where]]
        # Where others go on and this rank is done, its last rows serve as a dummy.
        if 0 < len(live) <= (1 - DROPPED) * len(places):
            rows = torch.tensor(live, device=best.device)
            read.select(rows)
            best, places = best[rows], [places[row] for row in live]
        for where in places:
            cost[where] += 1
        logits = continue_prompts(model, read, best[:, None])[:, -1]
    texts = [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in ids]
    return [Generated(text, tokens) for text, tokens in zip(texts, cost, strict=True)]


def _all_done(mine: bool, synced: bool, device: torch.device) -> bool:
    if not synced:
        return mine
    import torch.distributed as dist

    unfinished = torch.tensor(0.0 if mine else 1.0, device=device)
    dist.all_reduce(unfinished)
    return float(unfinished) == 0.0


def _library_greedy(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[list[int]], new_tokens: int, synced: bool
) -> list[Generated]:
    """Decode with the library's own loop, which knows how recurrent states are handed on."""
    device, width = next(model.parameters()).device, max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id(tokenizer), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with _generation_settings(model, _settings(tokenizer, new_tokens)):
        output = model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), synced_gpus=synced, generation_config=None
        )
    tokens = int(output.shape[1]) - 1
    return [Generated(_answer_text(tokenizer, row[width:].tolist()), tokens) for row in output]


def _settings(tokenizer: Tokenizer, max_new_tokens: int) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=pad_id(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


@contextmanager
def _generation_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    # A saved model's own settings (temperature, repetition penalty) would be merged in, so they are set aside.
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own


def _answer_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
