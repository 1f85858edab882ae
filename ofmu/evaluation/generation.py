"""Greedy answers to the questions of the evaluation sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from ofmu.data.encoding import Tokenizer, encode_prompt, pad_id
from ofmu.errors import DataError
from ofmu.evaluation.sharding import Shard, global_batches, run_sharded

if TYPE_CHECKING:
    from ofmu.config import UnlearnConfig


@torch.no_grad()
def generate_answers(
    model: Any, tokenizer: Tokenizer, questions: Sequence[str], config: UnlearnConfig, shard: Shard
) -> list[str]:
    """Return the greedy answer to each question, up to EOS or ``evaluation.max_new_tokens``.

    Raises:
        DataError: a prompt fills all positions that the model has.
    """
    if not questions:
        return []
    prompts = [encode_prompt(tokenizer, question, config.data) for question in questions]
    batches = global_batches([len(prompt) for prompt in prompts], config.evaluation.batch_size)
    settings = _greedy(tokenizer, _room(model, prompts, questions, config.evaluation.max_new_tokens))
    synced = shard.synchronized and shard.world_size > 1

    def run(indices: list[int]) -> list[str]:
        return _generate_batch(model, tokenizer, [prompts[index] for index in indices], synced)

    with _generation_settings(model, settings):
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


def _greedy(tokenizer: Tokenizer, max_new_tokens: int) -> GenerationConfig:
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


def _generate_batch(model: Any, tokenizer: Tokenizer, prompts: Sequence[list[int]], synced: bool) -> list[str]:
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id(tokenizer), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    output = model.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), synced_gpus=synced, generation_config=None
    )
    return [_answer_text(tokenizer, row[width:].tolist()) for row in output]


def _answer_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
