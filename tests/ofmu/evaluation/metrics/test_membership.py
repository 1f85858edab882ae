"""Membership attacks, fluency and in-scope metrics equal SciPy, autograd and computations by hand."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy, ks_2samp, mannwhitneyu

from ofmu.data.encoding import encode_example
from ofmu.data.load import load_data
from ofmu.data.rows import UnlearnData
from ofmu.evaluation.metrics import fluency, membership
from ofmu.evaluation.metrics.registry import REGISTRY
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.scores import AnswerLoss, Scores
from ofmu.evaluation.scoring.gradients import gradient_norms
from ofmu.evaluation.scoring.model import score_model
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.evaluation.scoring.teacher_forcing import score_examples
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.run_config import UnlearnConfig

SHAPE = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2)


def make_config(**evaluation: Any) -> UnlearnConfig:
    return UnlearnConfig.model_validate(
        {
            "data": {"generated": {"authors": 3, "forget_authors": 1, "world_facts": 2}},
            "evaluation": {"rouge": False, "batch_size": 8, "membership": True, "in_scope": True, **evaluation},
        }
    )


CONFIG = make_config()
DATA = load_data(CONFIG.data, 0)


def make_pair(seed: int) -> tuple[Any, Any]:
    tokenizer = train_tokenizer(["Question: Who wrote it?\nAnswer: Ann wrote it."] * 4, 280)
    model = build_model(SHAPE, tokenizer, seed=seed).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # Far from uniform, so that statistics differ between tokens.
    return model, tokenizer


@pytest.fixture(scope="module")
def scores() -> Scores:
    return score_model(*make_pair(0), DATA, CONFIG.evaluation, CONFIG.data, name="m")


@pytest.fixture(scope="module")
def reference() -> Scores:
    return score_model(*make_pair(1), DATA, CONFIG.evaluation, CONFIG.data, name="r")


@pytest.mark.parametrize("levels", [3, 1000])
def test_auc_equals_the_mann_whitney_statistic_with_and_without_ties(levels: int) -> None:
    draw = np.random.default_rng(0)
    members, others = draw.integers(levels, size=30) / levels, draw.integers(levels, size=20) / levels + 0.1
    expected = mannwhitneyu(others, members).statistic / (30 * 20)
    assert membership.auc(members.tolist(), others.tolist()) == pytest.approx(expected)


@pytest.mark.parametrize(("members", "others", "expected"), [([1, 2], [3], 1.0), ([3], [1, 2], 0.0), ([1], [1], 0.5)])
def test_auc_by_hand(members: list[float], others: list[float], expected: float) -> None:
    assert membership.auc(members, others) == expected


def test_auc_of_an_empty_group_or_nan_raises() -> None:
    for members, others in (([], [1.0]), ([1.0], []), ([math.nan], [1.0])):
        with pytest.raises(ValueError, match="at least one member"):
            membership.auc(members, others)


def test_privacy_leakage_by_hand() -> None:
    assert membership.privacy_leakage(0.8, 0.5) == pytest.approx(-60.0)  # ((1 - .8) - (1 - .5)) / (1 - .5)
    assert membership.privacy_leakage(0.3, 0.3) == 0.0
    with pytest.raises(ValueError, match="in the reference itself"):
        membership.privacy_leakage(0.5, 1.0)


def test_min_k_takes_the_least_likely_tokens_and_at_least_one() -> None:
    log_probs = np.array([-1.0, -5.0, -0.5, -3.0, -2.0])
    assert membership.min_k(log_probs) == 4.0
    assert membership.min_k(log_probs[:2]) == 5.0
    standardised = (log_probs - np.full(5, -2.0)) / np.array([1, 10, 1, 1, 1])
    expected = -np.sort(standardised)[:2].mean()
    assert membership.min_k_plus(log_probs, np.full(5, -2.0), np.array([1.0, 10, 1, 1, 1])) == pytest.approx(expected)
    assert math.isfinite(membership.min_k_plus(np.zeros(3), np.zeros(3), np.zeros(3)))


@torch.no_grad()
def test_statistics_of_a_batch_equal_those_of_single_rows(scores: Scores) -> None:
    model, tokenizer = make_pair(0)
    assert DATA.holdout is not None
    for name, rows in (("forget", DATA.forget.rows), ("holdout", DATA.holdout.rows)):
        for row, found in zip(rows, scores.sets[name], strict=True):
            example = encode_example(tokenizer, row.question, row.answer, CONFIG.data)
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0].double().numpy()
            logits = logits[example.answer_start - 1 : -1]
            probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            labels = list(example.input_ids[example.answer_start :])
            chosen = np.log(probs[range(len(labels)), labels])
            means = -entropy(probs, axis=1)
            deviations = np.sqrt((probs * np.log(probs) ** 2).sum(axis=1) - means**2)
            count = int(0.4 * len(labels))
            assert found.min_k == pytest.approx(-np.sort(chosen)[:count].mean(), rel=1e-4)
            standardised = (chosen - means) / deviations
            assert found.min_k_plus == pytest.approx(-np.sort(standardised)[:count].mean(), rel=1e-4)


def test_gradient_norms_equal_those_of_a_plain_backward_pass(scores: Scores) -> None:
    model, tokenizer = make_pair(0)
    for row, found in list(zip(DATA.forget.rows, scores.sets["forget"], strict=True))[:3]:
        example = encode_example(tokenizer, row.question, row.answer, CONFIG.data)
        ids = torch.tensor([example.input_ids])
        labels = ids.clone()
        labels[:, : example.answer_start] = -100
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        norm = math.sqrt(sum(float(weight.grad.double().square().sum()) for weight in model.parameters()))
        assert found.gradient_norm == pytest.approx(norm, rel=1e-4)
    model.zero_grad(set_to_none=True)
    gradient_norms(model, [example], Shard())
    assert all(weight.grad is None for weight in model.parameters())


def test_reported_attacks_equal_their_formulas_on_the_rows(scores: Scores, reference: Scores) -> None:
    values = metrics_of(scores, reference).values
    sides = [scores.sets[name] for name in ("forget", "holdout")]
    others = [reference.sets[name] for name in ("forget", "holdout")]

    def auc(numbers: Sequence[Sequence[float | None]]) -> float:
        return float(mannwhitneyu(numbers[1], numbers[0]).statistic) / (len(numbers[0]) * len(numbers[1]))

    assert values["membership_loss"] == pytest.approx(auc([[row.answer.mean for row in side] for side in sides]))
    compressed = [[row.answer.mean / len(zlib.compress(row.ground_truth.encode())) for row in side] for side in sides]
    assert values["membership_zlib"] == pytest.approx(auc(compressed))
    pairs = [zip(rows, reference_rows, strict=True) for rows, reference_rows in zip(sides, others, strict=True)]
    gaps = [[row.answer.mean - other.answer.mean for row, other in pair] for pair in pairs]
    assert values["membership_reference"] == pytest.approx(auc(gaps))
    for name in ("min_k", "min_k_plus", "gradient_norm"):
        assert values[f"membership_{name}"] == pytest.approx(auc([[getattr(row, name) for row in s] for s in sides]))
    model_auc, reference_auc = (auc([[row.min_k for row in side] for side in group]) for group in (sides, others))
    expected = 100 * ((1 - model_auc) - (1 - reference_auc)) / (1 - reference_auc)
    assert values["privacy_leakage"] == pytest.approx(expected)


@pytest.mark.slow
def test_missing_inputs_of_attacks_are_reasons(scores: Scores, reference: Scores) -> None:
    reasons = metrics_of(scores).reasons
    assert reasons["privacy_leakage"] == reasons["membership_reference"] == "no reference was given"
    bare = replace(reference, sets={"forget": reference.sets["forget"]})
    assert "score it with evaluation.membership true" in metrics_of(scores, bare).reasons["privacy_leakage"]
    without = UnlearnData(DATA.forget, DATA.retain, None, DATA.evaluation)
    missing = metrics_of(score_model(*make_pair(0), without, CONFIG.evaluation, CONFIG.data))
    assert missing.values["membership_loss"] is None
    assert missing.reasons["membership_loss"] == "the data has no holdout rows: set data.holdout"
    zero3 = metrics_of(score_model(*make_pair(0), DATA, CONFIG.evaluation, CONFIG.data, synchronized=True))
    assert zero3.reasons["membership_gradient_norm"].startswith("under ZeRO-3")
    assert zero3.values["membership_min_k"] is not None


def test_in_scope_sets_have_their_own_questions_and_the_formulas_of_forget_rows(
    scores: Scores, reference: Scores
) -> None:
    # The untrained models agree on all sets, so the reference's scores of one set are changed.
    changed = tuple(
        replace(row, perturbed=tuple(AnswerLoss(3 * loss.nll, loss.tokens) for loss in row.perturbed))
        for row in reference.sets["in_scope_multi_hop"]
    )
    reference = replace(reference, sets={**reference.sets, "in_scope_multi_hop": changed})
    result = metrics_of(scores, reference)
    statistics = []
    for name, field in (("paraphrase", "paraphrased"), ("multi_hop", "multi_hop"), ("translation", "translated")):
        rows = scores.sets[f"in_scope_{name}"]
        assert [row.question for row in rows] == [getattr(row, f"{field}_question") for row in DATA.forget.rows]
        probability = np.mean([math.exp(-row.answer.mean) for row in rows])
        assert result.values[f"in_scope_{name}_probability"] == pytest.approx(probability)
        ratios = []
        for side in (rows, reference.sets[f"in_scope_{name}"]):
            right = [(row.paraphrased or row.answer).mean for row in side]
            wrong = [np.mean([loss.mean for loss in row.perturbed]) for row in side]
            ratios.append(np.exp(np.array(right) - np.array(wrong)))
        statistics.append(ks_2samp(*ratios))
        assert result.values[f"in_scope_{name}_ks_statistic"] == pytest.approx(statistics[-1].statistic)
        assert result.values[f"in_scope_{name}_truth_ratio"] == pytest.approx(
            np.mean(np.minimum(ratios[0], 1 / ratios[0]))
        )
    assert result.values["in_scope_ks_variance"] == pytest.approx(np.var([test.statistic for test in statistics]))
    assert result.values["in_scope_forget_quality_variance"] == pytest.approx(np.var([s.pvalue for s in statistics]))
    only = {
        name: rows for name, rows in scores.sets.items() if name not in ("in_scope_multi_hop", "in_scope_translation")
    }
    fewer = metrics_of(replace(scores, sets=only), reference)
    assert fewer.reasons["in_scope_multi_hop_probability"] == "no forget row has a multi-hop question"
    assert "fewer than two hard sets" in fewer.reasons["in_scope_ks_variance"]


def test_every_reported_metric_lies_in_its_registered_range(scores: Scores, reference: Scores) -> None:
    for name, value in metrics_of(scores, reference).values.items():
        low, high = REGISTRY[name].lowest, REGISTRY[name].highest
        assert value is None or ((low is None or low <= value) and (high is None or value <= high)), name


def test_other_sets_change_no_bit_of_the_forget_scores(scores: Scores) -> None:
    forget_only = UnlearnData(DATA.forget, DATA.retain, None, {"forget": DATA.evaluation["forget"]})
    few = score_model(
        *make_pair(0),
        forget_only,
        make_config(membership=False, in_scope=False).evaluation,
        make_config(membership=False, in_scope=False).data,
    )
    for row, other in zip(few.sets["forget"], scores.sets["forget"], strict=True):
        assert (row.answer, row.perturbed) == (other.answer, other.perturbed)


@pytest.mark.slow
def test_a_prompt_cache_gives_the_scores_of_whole_passes_with_fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = make_pair(0)
    rows = DATA.forget.rows
    answers = [(row.question, answer) for row in rows for answer in (row.answer, *row.perturbed_answers)]
    examples = [
        encode_example(tokenizer, *pair, CONFIG.data) for pair in [*answers, ("", "Plain."), ("", "A longer one.")]
    ]
    cached, tokens = score_examples(model, tokenizer, examples, 7, Shard(), detailed=[0, 5])
    seen: list[int] = []
    model.register_forward_hook(lambda *args: seen.append(args[2]["input_ids"].numel()), with_kwargs=True)
    assert score_examples(model, tokenizer, examples, 7, Shard())[1] == sum(seen) == tokens
    monkeypatch.setattr(type(model), "_is_stateful", True)
    seen.clear()
    whole, more = score_examples(model, tokenizer, examples, 7, Shard(), detailed=[0, 5])
    assert sum(seen) == more > 1.2 * tokens
    for part, one in zip(cached, whole, strict=True):
        assert part.nll == pytest.approx(one.nll, rel=1e-5)
        assert (part.tokens, part.extraction_strength) == (one.tokens, one.extraction_strength)
        assert part.min_k_plus == (None if one.min_k_plus is None else pytest.approx(one.min_k_plus, rel=1e-4))


def test_fluency_by_hand() -> None:
    texts = ["a b a b a b", "the cat", ""]
    assert fluency.distinct(texts, 1) == 4 / 8
    assert fluency.distinct(texts, 2) == 3 / 6
    assert fluency.repetition(texts) == pytest.approx(1 - 2 / 3)
    assert fluency.repetition(texts, 2) == pytest.approx((1 - 2 / 5 + 0) / 2)
    assert fluency.mean_words(texts) == pytest.approx(8 / 3)
    assert fluency.distinct([""], 1) is fluency.repetition(["a b c"]) is fluency.mean_words([]) is None


def test_fluency_reads_the_generated_forget_answers(scores: Scores) -> None:
    reasons = metrics_of(scores).reasons
    assert reasons["forget_distinct_1"] == "no text was generated, since evaluation.rouge is false"
    generated = tuple(replace(row, generated="so it is", rouge=0.0) for row in scores.sets["forget"])
    values = metrics_of(replace(scores, sets={**scores.sets, "forget": generated})).values
    assert values["forget_distinct_1"] == pytest.approx(3 / (3 * len(generated)))
    assert values["forget_answer_words"] == 3.0
    assert values["forget_repetition"] is None
