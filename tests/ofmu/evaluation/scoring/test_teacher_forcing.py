"""Scores from shared passes, compared with single rows; scores from chunks of logits, compared with whole logits."""

from __future__ import annotations

import random
from dataclasses import astuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from ofmu.data.rows import Example
from ofmu.evaluation.scoring.batches import MORE_ROWS
from ofmu.evaluation.scoring.gradients import gradient_norms
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.evaluation.scoring.teacher_forcing import score_examples
from ofmu.testing import tiny_llama, tiny_rows


@pytest.mark.parametrize("chunk_bytes", [500, 2000])
def test_chunks_give_the_scores_of_whole_logits(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 bytes hold the logits of two tokens: a row is cut too. Half the rows share a prompt."""
    model, tokenizer = tiny_llama().eval(), SimpleNamespace(eos_token_id=2, pad_token_id=0)
    rows = [*tiny_rows(6, 1), *tiny_rows(6, 1)]

    def scores() -> list[float]:
        answers, _ = score_examples(model, tokenizer, rows, 5, Shard(), detailed=[0, 3, 7])
        norms, _ = gradient_norms(model, rows[:4], Shard())
        return [value for answer in answers for value in astuple(answer) if value is not None] + norms

    whole = scores()
    monkeypatch.setattr("ofmu.models.chunked_logits.CHUNK_BYTES", chunk_bytes)
    assert scores() == pytest.approx(whole, rel=1e-4, abs=1e-5)
    assert len(whole) == 12 * 4 + 3 * 2 + 4


def windowed_model() -> MistralForCausalLM:
    """Build a model whose cache keeps five positions, so its layers are not those with free positions."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = MistralForCausalLM(MistralConfig(vocab_size=61, num_key_value_heads=2, sliding_window=6, **shape))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(8)
    return model


def random_rows(count: int) -> list[Example]:
    """Return random rows: prompts with one to nine answers, of which some have one token."""
    chance, rows = random.Random(0), list[Example]()
    while len(rows) < count:
        prompt = chance.choices(range(3, 61), k=chance.randint(1, 20))
        for _ in range(chance.choice((1, 2, 9))):
            answer = chance.choices(range(3, 61), k=chance.choice((0, chance.randint(1, 25))))
            rows.append(Example((*prompt, *answer, chance.choice((2, 5))), len(prompt)))
    chance.shuffle(rows)
    return rows


@torch.no_grad()
def plain_losses(model: Any, rows: list[Example]) -> list[float]:
    """Return the loss of each row, read alone and whole, in float64."""
    losses = []
    for row in rows:
        logp = model(torch.tensor([row.input_ids]), use_cache=False).logits[0, row.answer_start - 1 : -1].double()
        labels = torch.tensor(row.input_ids[row.answer_start :])
        losses.append(-float(logp.log_softmax(-1).gather(-1, labels[:, None]).sum()))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("make_model", [tiny_llama, windowed_model])
def test_rows_that_share_passes_have_the_scores_of_single_rows(make_model: Any) -> None:
    model, tokenizer = make_model().eval(), SimpleNamespace(eos_token_id=2, pad_token_id=0)
    rows = random_rows(60)
    plain = plain_losses(model, rows)
    found = {size: score_examples(model, tokenizer, rows, size, Shard(), detailed=range(40)) for size in (1, 3, 16)}
    single, most_tokens = found.pop(1)
    assert [score.nll for score in single] == pytest.approx(plain, rel=1e-5)
    for size, (scores, tokens) in found.items():
        assert tokens < 1.05 * most_tokens, size
        for alone, score in zip(single, scores, strict=True):
            # min-k++ is a difference of log-probabilities in units of their deviation, so it may be close to 0.
            assert astuple(score)[:-1] == pytest.approx(astuple(alone)[:-1], rel=1e-5)
            assert score.min_k_plus == pytest.approx(alone.min_k_plus, abs=1e-5)


def test_single_rows_share_no_pass_and_two_rows_do() -> None:
    model, tokenizer = tiny_llama().eval(), SimpleNamespace(eos_token_id=2, pad_token_id=0)
    rows, seen = random_rows(40), list[int]()
    model.register_forward_hook(lambda *args: seen.append(len(args[2]["input_ids"])), with_kwargs=True)
    score_examples(model, tokenizer, rows, 1, Shard())
    assert set(seen) == {1}
    seen.clear()
    score_examples(model, tokenizer, rows, 2, Shard())
    assert 1 < max(seen) <= 2 * MORE_ROWS
