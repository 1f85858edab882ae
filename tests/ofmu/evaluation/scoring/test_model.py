"""Scores of batches, on one rank or two, equal plain computations on single rows."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

from ofmu.data.encoding import encode_example, encode_prompt
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.errors import DataError
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.scores import AnswerLoss, Scores
from ofmu.evaluation.scoring.generation import generate_answers
from ofmu.evaluation.scoring.model import score_model
from ofmu.evaluation.scoring.rouge import rouge_l_recall
from ofmu.evaluation.scoring.sharding import Shard

SCRIPT = Path(__file__).resolve().parents[3] / "helpers" / "tiny_scoring.py"
_spec = spec_from_file_location("tiny_scoring", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
tiny: Any = module_from_spec(_spec)
_spec.loader.exec_module(tiny)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return tiny.make_model()


@pytest.fixture(scope="module")
def scores(pair: tuple[Any, Any]) -> Scores:
    return score_model(*pair, tiny.make_data(), *tiny.sections(), name="m")


def plain_answer(model: Any, tokenizer: Any, question: str, answer: str) -> tuple[AnswerLoss, list[bool]]:
    """Return the loss of one unpadded row in float64, from log_softmax, and the token matches without EOS."""
    example = encode_example(tokenizer, question, answer, tiny.make_config().data)
    ids = torch.tensor([example.input_ids])
    logits = model.double()(input_ids=ids).logits[0]
    model.float()
    start = example.answer_start
    logp = torch.log_softmax(logits[start - 1 : -1], dim=-1)
    labels = ids[0, start:]
    nll = -sum(float(logp[i, label]) for i, label in enumerate(labels))
    matches = [bool(row.argmax() == label) for row, label in zip(logp, labels, strict=True)]
    return AnswerLoss(nll, len(labels)), matches[:-1]


@torch.no_grad()
def plain_text(model: Any, tokenizer: Any, question: str, tokens: int) -> str:
    """Return a greedy answer that is decoded without a cache."""
    ids = encode_prompt(tokenizer, question, tiny.make_config().data)
    produced: list[int] = []
    for _ in range(tokens):
        best = int(model(input_ids=torch.tensor([ids + produced])).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        produced.append(best)
    return tokenizer.decode(produced, skip_special_tokens=True).strip()


@torch.no_grad()
def test_losses_and_matches_equal_those_of_single_rows(pair: tuple[Any, Any], scores: Scores) -> None:
    compared = 0
    for name, row_set in tiny.make_data().evaluation.items():
        for row, row_scores in zip(row_set.rows, scores.sets[name], strict=True):
            loss, matches = plain_answer(*pair, row.question, row.answer)
            variants = [(row.answer, row_scores.answer)]
            variants += [(row.paraphrased_answer, row_scores.paraphrased)] if row.paraphrased_answer else []
            variants += list(zip(row.perturbed_answers, row_scores.perturbed, strict=True))
            for answer, scored in variants:
                expected, _ = plain_answer(*pair, row.question, answer)
                assert scored.tokens == expected.tokens
                assert scored.nll == pytest.approx(expected.nll, rel=1e-5)
                compared += 1
            assert row_scores.answer.nll == pytest.approx(loss.nll, rel=1e-5)
            assert row_scores.exact_memorization == sum(matches) / len(matches)
            wrong = [index for index, match in enumerate(matches) if not match]
            assert row_scores.extraction_strength == pytest.approx(1 - (max(wrong, default=-1) + 1) / len(matches))
    assert compared > 20


def test_generated_text_equals_greedy_decoding_without_batch_or_cache(pair: tuple[Any, Any], scores: Scores) -> None:
    for name in ("forget", "world_facts"):
        for row in scores.sets[name]:
            assert row.generated == plain_text(*pair, row.question, 12)
            assert row.rouge == rouge_l_recall(row.ground_truth, row.generated)
    assert len({row.generated for row in scores.sets["forget"]}) > 1


def test_generation_stops_at_eos(pair: tuple[Any, Any], scores: Scores) -> None:
    model, tokenizer = tiny.make_model()
    first = scores.sets["forget"][0]
    produced = tokenizer(first.generated, add_special_tokens=False)["input_ids"]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(produced[2])
    shorter = score_model(model, tokenizer, tiny.make_data(), *tiny.sections()).sets["forget"][0].generated
    assert shorter == plain_text(model, tokenizer, first.question, 12)
    assert len(shorter) < len(first.generated)


def test_plain_text_is_scored_and_not_generated(scores: Scores) -> None:
    (row,) = scores.sets["retain"]
    assert (row.generated, row.rouge) == (None, None)
    assert math.isfinite(row.answer.nll)
    assert metrics_of(scores).reasons["retain_rouge"] == "plain text rows have no question to answer"


def test_generation_can_be_switched_off(pair: tuple[Any, Any]) -> None:
    result = metrics_of(score_model(*pair, tiny.make_data(), *tiny.sections(rouge=False)))
    assert result.reasons["forget_rouge"] == "no text was generated, since evaluation.rouge is false"
    assert set(result.utility_components) == {
        "retain_probability", "world_facts_probability", "world_facts_truth_ratio"
    }  # fmt: skip


@pytest.mark.slow
def test_max_rows_keeps_all_forget_rows_and_samples_the_other_sets_by_content(
    pair: tuple[Any, Any], scores: Scores
) -> None:
    limited = score_model(*pair, tiny.make_data(), *tiny.sections(max_rows=2))
    assert [row.row_hash for row in limited.sets["forget"]] == [row.row_hash for row in scores.sets["forget"]]
    by_hash = {row.row_hash: row for row in scores.sets["world_facts"]}
    kept = {row.row_hash for row in limited.sets["world_facts"]}
    assert kept == set(sorted(by_hash)[:2])
    for row in limited.sets["world_facts"]:
        assert row.answer.nll == pytest.approx(by_hash[row.row_hash].answer.nll, rel=1e-5)
    backwards = {name: RowSet(name, tuple(reversed(found.rows))) for name, found in tiny.make_data().evaluation.items()}
    reordered = score_model(*pair, replace(tiny.make_data(), evaluation=backwards), *tiny.sections(max_rows=2))
    assert {row.row_hash for row in reordered.sets["world_facts"]} == kept


def test_the_model_keeps_its_mode_and_its_generation_config_which_has_no_effect(scores: Scores) -> None:
    model, tokenizer = tiny.make_model()
    model.generation_config.update(do_sample=True, temperature=3.0, repetition_penalty=5.0, max_length=4)
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = score_model(model, tokenizer, tiny.make_data(), *tiny.sections(), name="m")
    assert again == scores
    assert model.training
    assert model.generation_config.temperature == 3.0


def test_a_prompt_that_fills_all_positions_raises(pair: tuple[Any, Any]) -> None:
    model, tokenizer = tiny.make_model()
    model.config.max_position_embeddings = 10
    with pytest.raises(DataError, match="prompt of question 1 fills all 10 positions"):
        generate_answers(model, tokenizer, ["Who wrote book 7?"], *tiny.sections(), Shard())
    with pytest.raises(DataError, match="takes 28 tokens, and the model has 10 positions"):
        score_model(model, tokenizer, tiny.make_data(), *tiny.sections())


@pytest.mark.ranks
@pytest.mark.timeout(180)  # Two interpreters import torch and transformers.
def test_two_ranks_give_the_same_bits_as_one(tmp_path: Path, scores: Scores) -> None:
    command = [sys.executable, str(SCRIPT)]
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path / "store"), str(tmp_path)]) for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=160) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    for mode in ("independent", "synchronized"):
        for rank in range(2):
            assert Scores.load(tmp_path / f"{mode}{rank}.json") == scores


def test_a_long_text_is_scored_as_a_whole(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    evaluation, encoding = tiny.sections(membership=True, max_new_tokens=1)
    text = "Ann Lee lives in a town by the sea, and Bo wrote to Di of Lagos about it twice a year."
    rows = RowSet("forget", (Row(question="", answer=text),))
    data = UnlearnData(rows, rows, rows, {"forget": rows})
    short = encoding.model_copy(update={"max_length": 12})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = score_model(model, tokenizer, data, evaluation, short).sets["forget"][0]

    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert len(ids) > 3 * 11
    nll, matches = 0.0, []
    for start in range(0, len(ids), 11):
        chunk = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + 11]]])
        logp = torch.log_softmax(model(input_ids=chunk).logits[0, :-1].double(), dim=-1)
        nll -= float(logp.gather(-1, chunk[0, 1:, None]).sum())
        matches += (logp.argmax(dim=-1) == chunk[0, 1:]).tolist()
    assert score.answer.tokens == len(ids)
    assert score.answer.nll == pytest.approx(nll, rel=1e-5)
    assert score.exact_memorization == pytest.approx(sum(matches[:-1]) / (len(ids) - 1))
    assert None not in (score.extraction_strength, score.min_k, score.min_k_plus, score.gradient_norm)

    with pytest.warns(UserWarning, match=r"evaluation set forget \d+\.\d% of the tokens, in 1 of 1 text"):
        head = score_model(model, tokenizer, data, evaluation, short.model_copy(update={"truncation": True}))
    assert head.sets["forget"][0].answer.tokens == 11
