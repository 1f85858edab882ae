"""Answers to the questions of the evaluation sets: greedy, or sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer, encode_prompt, pad_id
from ofmu.errors import DataError
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.scoring.batches import batches_by_label, row_batches
from ofmu.evaluation.scoring.kv_cache import extend, left_padded, prefill, supports_prompt_cache
from ofmu.evaluation.scoring.sharding import Shard, run_sharded

ChooseTokens = Callable[[torch.Tensor], torch.Tensor]
"""From logits, shape (rows, vocabulary), to the next token of each row, shape (rows,)."""

MIN_FINISHED_SHARE = 0.25
"""Share of a batch's rows that must be finished before they leave the batch. Removing rows copies the others' cache."""


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """A generated answer without its EOS."""

    text: str
    tokens: int
    """Tokens that the forward passes read for this answer, padding included."""


@torch.no_grad()
def generate_answers(
    model: Any,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    evaluation: EvaluationConfig,
    encoding: DataConfig,
    shard: Shard,
    labels: Sequence[str] | None = None,
) -> list[GeneratedAnswer]:
    """Return the greedy answer to each question, up to EOS or ``evaluation.max_new_tokens``.

    Args:
        model: a causal LM in evaluation mode.
        tokenizer: the model's tokenizer.
        questions: the questions.
        evaluation: gives the batch size and the number of new tokens.
        encoding: the data section, which rules how a question becomes a prompt.
        shard: this process's rank.
        labels: the evaluation set of each question. Only questions of one set share a batch. None: one set.

    Raises:
        DataError: a prompt fills all positions of the model.
    """
    if not questions:
        return []
    prompts = [encode_prompt(tokenizer, question, encoding) for question in questions]

    def make_batches(indices: list[int]) -> list[list[int]]:
        batches = row_batches([len(prompts[index]) for index in indices], evaluation.batch_size)
        return [[indices[position] for position in batch] for batch in batches]

    batches = batches_by_label(labels or [""] * len(questions), make_batches)
    new_tokens = _max_new_tokens(model, prompts, evaluation.max_new_tokens)
    decode = _decode if supports_prompt_cache(model) else decode_with_transformers
    synced = shard.synchronized and shard.world_size > 1

    def run(indices: list[int]) -> list[GeneratedAnswer]:
        return decode(model, tokenizer, [prompts[index] for index in indices], new_tokens, synced)

    return run_sharded(batches, run, shard, name="generating", work=[len(batch) for batch in batches])


@torch.no_grad()
def sample_answers(
    model: Any,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    count: int,
    evaluation: EvaluationConfig,
    encoding: DataConfig,
    seed: int,
) -> list[list[str]]:
    """Return ``count`` answers to each question, each sampled at temperature 1 from the whole vocabulary.

    Args:
        model: a causal LM in evaluation mode.
        tokenizer: the model's tokenizer.
        questions: the questions.
        count: number of answers per question.
        evaluation: gives the batch size and the number of new tokens.
        encoding: the data section, which rules how a question becomes a prompt.
        seed: seed of the samples. The samples of a batch also depend on the rows that share it.

    Raises:
        DataError: a prompt fills all positions of the model.
    """
    prompts = [encode_prompt(tokenizer, question, encoding) for question in questions for _ in range(count)]
    if not prompts:
        return []
    new_tokens = _max_new_tokens(model, prompts[::count], evaluation.max_new_tokens)
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: torch.Tensor) -> torch.Tensor:
        # The generator is on the CPU, so a GPU draws the same samples.
        probabilities = torch.softmax(logits.float(), dim=-1).cpu()
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)

    def run(indices: list[int]) -> list[GeneratedAnswer]:
        batch = [prompts[index] for index in indices]
        if supports_prompt_cache(model):
            return _decode(model, tokenizer, batch, new_tokens, False, choose)
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            return decode_with_transformers(model, tokenizer, batch, new_tokens, False, sample=True)

    batches = row_batches([len(prompt) for prompt in prompts], evaluation.batch_size)
    answers = run_sharded(batches, run, Shard(), name="sampling", work=[len(batch) for batch in batches])
    return [[answer.text for answer in answers[start : start + count]] for start in range(0, len(answers), count)]


def _greedy(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


def _max_new_tokens(model: Any, prompts: Sequence[list[int]], limit: int) -> int:
    """Return ``limit``, or fewer tokens if the model has fewer positions after the longest prompt."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return limit
    longest = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    free = int(positions) - len(prompts[longest])
    if free < 1:
        raise DataError(
            f"The prompt of question {longest + 1} fills all {positions} positions of the model: "
            "shorten the question or set evaluation.rouge to false"
        )
    return min(limit, free)


def _decode(
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    new_tokens: int,
    synced: bool,
    choose: ChooseTokens = _greedy,
) -> list[GeneratedAnswer]:
    """Decode token by token. Rows that reached EOS leave the batch.

    ``synced``: every forward pass is a collective, so this rank continues until all ranks have finished.
    """
    eos, width = int(tokenizer.eos_token_id), max(map(len, prompts))
    state = prefill(model, prompts, pad_id(tokenizer))
    batch = list(range(len(prompts)))  # Index into ``prompts`` of each row of the batch.
    ids: list[list[int]] = [[] for _ in prompts]
    finished, cost = [False] * len(prompts), [width] * len(prompts)
    logits = state.logits
    for step in range(new_tokens):
        best = choose(logits)
        for index, token in zip(batch, best.tolist(), strict=True):
            finished[index] |= token == eos
            if not finished[index]:
                ids[index].append(token)
        if step == new_tokens - 1 or _all_ranks_finished(all(finished), synced, best.device):
            break
        unfinished = [row for row, index in enumerate(batch) if not finished[index]]
        # If this rank has finished and others have not, its last rows go on as a dummy.
        if 0 < len(unfinished) <= (1 - MIN_FINISHED_SHARE) * len(batch):
            rows = torch.tensor(unfinished, device=best.device)
            state.select(rows)
            best, batch = best[rows], [batch[row] for row in unfinished]
        for index in batch:
            cost[index] += 1
        logits = extend(model, state, best[:, None])[:, -1]
    texts = [str(tokenizer.decode(answer, skip_special_tokens=True)).strip() for answer in ids]
    return [GeneratedAnswer(text, tokens) for text, tokens in zip(texts, cost, strict=True)]


def _all_ranks_finished(finished: bool, synced: bool, device: torch.device) -> bool:
    if not synced:
        return finished
    import torch.distributed as dist

    unfinished_ranks = torch.tensor(0.0 if finished else 1.0, device=device)
    dist.all_reduce(unfinished_ranks)
    return float(unfinished_ranks) == 0.0


def decode_with_transformers(
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    new_tokens: int,
    synced: bool,
    *,
    sample: bool = False,
) -> list[GeneratedAnswer]:
    """Decode with ``model.generate``, which carries recurrent states from step to step.

    Args:
        model: the model.
        tokenizer: the model's tokenizer.
        prompts: token ids of each prompt.
        new_tokens: upper bound on the tokens of an answer.
        synced: every forward pass is a collective, so all ranks must run equally many.
        sample: sample at temperature 1 with the global generator. Otherwise the answers are greedy.
    """
    device, width = next(model.parameters()).device, max(map(len, prompts))
    ids, mask = left_padded(prompts, pad_id(tokenizer))
    with _generation_config(model, _decoding_config(tokenizer, new_tokens, sample)):
        output = model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), synced_gpus=synced, generation_config=None
        )
    tokens = int(output.shape[1]) - 1
    return [GeneratedAnswer(_answer_text(tokenizer, row[width:].tolist()), tokens) for row in output]


def _decoding_config(tokenizer: Tokenizer, max_new_tokens: int, sample: bool) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sample,
        num_beams=1,
        top_k=0 if sample else None,
        use_cache=True,
        pad_token_id=pad_id(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


@contextmanager
def _generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    # ``generate`` merges the saved model's own config (temperature, repetition penalty) into any other, so replace it.
    saved = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = saved


def _answer_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
