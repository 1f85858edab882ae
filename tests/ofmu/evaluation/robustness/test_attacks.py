"""Attacks and alignment equal closed forms and an independent rounding, and enter the report of evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.stats import ortho_group
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from ofmu.data.encoding import encode_example, encode_prompt
from ofmu.data.load import load_data
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.robustness import attacks
from ofmu.evaluation.robustness.alignment import alignment, answer_states, linear_cka, mean_cosine
from ofmu.evaluation.robustness.attacks import (
    asked_rows,
    curve_area,
    quantization,
    quantized,
    relearning,
    round_to_nearest,
    rounded_share,
    sampling,
)
from ofmu.evaluation.scoring.generation import sample_answers
from ofmu.evaluation.scoring.model import score_model
from ofmu.evaluator import evaluate
from ofmu.models.config import ScratchModelConfig
from ofmu.models.language import save_model
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.run_config import UnlearnConfig

SHAPE = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2)
CONFIG = UnlearnConfig.model_validate(
    {
        "data": {"generated": {"authors": 4, "forget_authors": 2, "world_facts": 2}},
        "training": {"learning_rate": 0.03},
        "reference": {"source": "none"},
        "evaluation": {"rouge": False, "batch_size": 32},
    }
)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    tokenizer = train_tokenizer(["Question: Who wrote it?\nAnswer: Ann wrote it."] * 4, 280)
    return build_model(SHAPE, tokenizer, seed=0).eval(), tokenizer


def test_cka_is_the_alignment_of_centred_kernels_and_invariant_to_rotation_shift_and_scale() -> None:
    draw = np.random.default_rng(0)
    states, others = draw.normal(size=(9, 4)), draw.normal(size=(9, 6))
    centre = np.eye(9) - 1 / 9
    hsic = [
        np.trace(a @ a.T @ centre @ b @ b.T @ centre) for a, b in ((states, others), (states, states), (others, others))
    ]
    assert linear_cka(states, others) == pytest.approx(hsic[0] / np.sqrt(hsic[1] * hsic[2]))
    rotation = ortho_group.rvs(4, random_state=1)
    assert linear_cka(states, 3 * states @ rotation + 5) == pytest.approx(1.0)
    assert linear_cka(np.array([[1.0], [-1.0], [0.0]]), np.array([[1.0], [1.0], [-2.0]])) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="at least two"):
        linear_cka(states[:1], others[:1])
    with pytest.raises(ValueError, match="differ between rows"):
        linear_cka(states, np.ones((9, 2)))


def test_the_mean_cosine_of_known_angles() -> None:
    assert mean_cosine(np.array([[2.0, 0], [0, 3]]), np.array([[5.0, 5], [0, -1]])) == pytest.approx((0.5**0.5 - 1) / 2)
    with pytest.raises(ValueError, match="equal shapes"):
        mean_cosine(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="zero"):
        mean_cosine(np.zeros((1, 2)), np.ones((1, 2)))


@torch.no_grad()
def test_states_are_means_over_the_answer_tokens_in_any_batch(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    rows = [("Who?", "Ann."), ("Who wrote the long one?", "Bo, and after him Cy.")]
    examples = [encode_example(tokenizer, *row, CONFIG.data) for row in rows]
    together = answer_states(model, examples, 0, batch_size=2)
    assert together.shape == (3, 2, 16)
    for number, example in enumerate(examples):
        states = model(input_ids=torch.tensor([example.input_ids]), output_hidden_states=True).hidden_states
        single = np.stack([layer[0, example.answer_start :].numpy().mean(axis=0) for layer in states])
        np.testing.assert_allclose(together[:, number], single, atol=1e-5)


def test_alignment_is_1_with_the_model_itself_and_lower_with_another(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    data, other = load_data(CONFIG.data, 0), build_model(SHAPE, tokenizer, seed=1).eval()
    same = alignment(model, model, tokenizer, data, CONFIG.evaluation, CONFIG.data)
    assert all(value == pytest.approx(1.0) for value in same.metrics.values())
    different = alignment(model, other, tokenizer, data, CONFIG.evaluation, CONFIG.data)
    assert len(different.details["layers"]["alignment_forget_cka"]) == 3
    assert all(value < 0.99 for value in different.metrics.values())
    shallow = SHAPE.model_copy(update={"num_layers": 1})
    short = alignment(model, build_model(shallow, tokenizer, seed=1), tokenizer, data, CONFIG.evaluation, CONFIG.data)
    assert set(short.metrics.values()) == {None}
    assert short.reasons["alignment_retain_cosine"] == "the models have 2 and 1 layers"


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rounding_equals_torch_s_per_channel_quantization(bits: int) -> None:
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    weight[3] = 0.0
    levels = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1).clamp(min=1e-9) / levels
    zero = torch.zeros(6, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -levels, levels)
    torch.testing.assert_close(round_to_nearest(weight, bits), expected, atol=1e-6, rtol=0)
    assert all(len(row.unique()) <= 2 * levels + 1 for row in round_to_nearest(weight, bits))


def test_only_linear_weights_of_a_copy_are_rounded(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    changed = {
        name for name, weight in quantized(model, 4).state_dict().items() if not torch.equal(weight, before[name])
    }
    assert changed == {name for name in before if name.endswith("proj.weight") or name == "lm_head.weight"}
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_blocks_of_gpt_2_are_rounded_by_column() -> None:
    shape = GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(shape)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    after = quantized(model, 4).state_dict()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    layers = {f"{part}.weight" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    tied = {"lm_head.weight", "transformer.wte.weight"}
    assert changed == tied | {f"transformer.h.{block}.{layer}" for block in (0, 1) for layer in layers}
    name = "transformer.h.1.mlp.c_fc.weight"
    columns = [round_to_nearest(column[None], 4)[0] for column in before[name].T]
    torch.testing.assert_close(after[name], torch.stack(columns, dim=1), atol=0, rtol=0)
    assert rounded_share(model) == 1


def test_a_model_whose_blocks_cannot_be_rounded_has_no_quantized_metrics(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    experts = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    data = load_data(CONFIG.data, 0)
    before = metrics_of(score_model(model, tokenizer, data, CONFIG.evaluation, CONFIG.data), None)
    arguments = (tokenizer, data, CONFIG.evaluation, CONFIG.data, before, None)
    whole = quantization(model, *arguments, bits=4)
    assert whole.metrics["quantization_4_forget_probability"] != before.values["forget_probability"]
    partial = quantization(MixtralForCausalLM(experts), *arguments, bits=4)
    # The attention has 1,024 of 7,232 weights. The router and the experts are no linear layers in transformers 5.
    reason = "14% of the weights of the model's blocks are in linear layers, and no others can be rounded"
    assert partial.metrics == dict.fromkeys(whole.metrics)
    assert partial.reasons == dict.fromkeys(whole.metrics, reason)


def test_the_area_equals_scipy_s_trapezoids() -> None:
    levels = [0.1, 0.5, 0.4, 0.9]
    assert curve_area(levels) == pytest.approx(trapezoid(levels, dx=1 / 3))
    assert curve_area([0.3, 0.3]) == pytest.approx(0.3)


def test_relearning_reports_its_curve_and_does_not_change_the_model(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    before = [weight.clone() for weight in model.parameters()]
    data = load_data(CONFIG.data, 0)
    result = relearning(
        model,
        tokenizer,
        data,
        CONFIG.evaluation,
        CONFIG.data,
        learning_rate=CONFIG.training.learning_rate,
        seed=CONFIG.seed,
        steps=4,
        rows=3,
    )
    assert all(torch.equal(*weights) for weights in zip(before, model.parameters(), strict=True))
    assert (result.details["rows"], result.details["watched"]) == (3, len(data.forget) - 3)
    assert len(result.details["curve"]) == 5
    levels = [point["probability"] for point in result.details["curve"]]
    assert result.metrics["relearning_probability"] == levels[-1] > levels[0]
    assert result.gradient_evaluations == 4
    assert result.tokens > 4 * 3
    assert result.metrics["relearning_probability_area"] == pytest.approx(trapezoid(levels, dx=1 / 4))


@pytest.mark.slow
def test_relearning_recovers_the_rows_that_it_trains_on(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    result = relearning(
        model,
        tokenizer,
        load_data(CONFIG.data, 0),
        CONFIG.evaluation,
        CONFIG.data,
        learning_rate=CONFIG.training.learning_rate,
        seed=CONFIG.seed,
        steps=40,
        rows=1000,
    )
    assert (result.details["rows"], result.details["watched"]) == (16, 16)
    assert result.details["curve"][0]["extraction_strength"] < 0.1
    assert result.metrics["relearning_probability"] > 0.15


@pytest.mark.slow
def test_evaluate_reports_the_attacks_and_the_alignment_of_the_config(pair: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = pair
    save_model(model, tokenizer, tmp_path / "model")
    selected = {"alignment": True, "attacks": ("relearning", "quantization_8", "quantization_4")}
    config = CONFIG.model_copy(update={"evaluation": CONFIG.evaluation.model_copy(update=selected)})
    report = evaluate(tmp_path / "model", config, reference=tmp_path / "model")
    metrics = report["metrics"]
    assert metrics["alignment_forget_cka"] == pytest.approx(1.0)
    after = {bits: metrics[f"quantization_{bits}_forget_probability"] for bits in (8, 4)}
    drift = {bits: abs(value - metrics["forget_probability"]) for bits, value in after.items()}
    assert 0 < drift[8] < drift[4]
    assert metrics["quantization_4_ks_statistic"] is not None
    assert report["quantization_8"]["before"]["extraction_strength"] == metrics["extraction_strength"]
    assert len(report["relearning"]["curve"]) == 11
    assert set(report["reasons"]) == {name for name, value in metrics.items() if value is None}
    only = {"evaluation": CONFIG.evaluation.model_copy(update={"alignment": True})}
    without = evaluate(tmp_path / "model", CONFIG.model_copy(update=only))
    assert without["metrics"]["alignment_forget_cka"] is None
    assert without["reasons"]["alignment_forget_cka"].startswith("there is no retrained model")


def test_sampled_leakage_is_the_best_of_each_rows_answers(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = pair
    data = load_data(CONFIG.data, 0)
    rows = {row.question: row.answer for row in data.evaluation["forget"].rows}

    def answers(_model: Any, _tokenizer: Any, questions: list[str], count: int, *_: Any) -> list[list[str]]:
        assert (len(questions), count) == (3, 4)
        return [["nothing", rows[questions[0]], "nothing", "nothing"], ["nothing"] * 4, [rows[questions[2]]] * 4]

    monkeypatch.setattr(attacks, "sample_answers", answers)
    result = sampling(model, tokenizer, data, CONFIG.evaluation, CONFIG.data, seed=0, samples=4, rows=3)
    assert result.details["curve"] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert result.metrics == {"sampled_leakage": pytest.approx(2 / 3)}


@pytest.mark.slow
@torch.no_grad()
def test_samples_follow_the_models_distribution_and_the_seed(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    evaluation = CONFIG.evaluation.model_copy(update={"max_new_tokens": 1, "batch_size": 64})

    def drawn(seed: int) -> list[str]:
        return sample_answers(model, tokenizer, ["Who?"], 2000, evaluation, CONFIG.data, seed)[0]

    found = drawn(0)
    assert found == drawn(0)
    assert found != drawn(1)
    prompt = encode_prompt(tokenizer, "Who?", CONFIG.data)
    probabilities = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1], dim=-1)
    texts = [str(tokenizer.decode([token], skip_special_tokens=True)).strip() for token in range(len(probabilities))]
    texts[tokenizer.eos_token_id] = ""
    expected: dict[str, float] = {}
    for text, probability in zip(texts, probabilities.tolist(), strict=True):
        expected[text] = expected.get(text, 0.0) + probability
    for text, probability in sorted(expected.items(), key=lambda item: -item[1])[:5]:
        deviation = (probability * (1 - probability) / 2000) ** 0.5
        assert abs(found.count(text) / 2000 - probability) < 5 * deviation, text


def test_plain_text_takes_no_question_out_of_the_sample() -> None:
    texts = [Row(question="", answer=f"Text {number}.") for number in range(398)]
    questions = [Row(question=f"Question {number}?", answer="An answer.") for number in range(2)]
    mixed = RowSet("forget", (*texts[:200], questions[0], *texts[200:], questions[1]))
    data = UnlearnData(forget=mixed, retain=mixed, holdout=None, evaluation={"forget": mixed})
    assert asked_rows(data, 64) == questions
    assert len(asked_rows(data, 1)) == 1
    alone = UnlearnData(forget=RowSet("forget", tuple(questions)), retain=mixed, holdout=None, evaluation={})
    assert asked_rows(alone, 1) == asked_rows(data, 1)


def test_data_without_forget_questions_have_no_sampled_leakage(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    texts = RowSet("forget", (Row(question="", answer="A text."),))
    data = UnlearnData(forget=texts, retain=texts, holdout=None, evaluation={"forget": texts})
    result = sampling(model, tokenizer, data, CONFIG.evaluation, CONFIG.data, seed=0)
    assert (result.metrics, result.reasons["sampled_leakage"]) == (
        {"sampled_leakage": None},
        "no forget row has a question",
    )
