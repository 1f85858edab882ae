"""The attack by examples asks what a hand-written prompt asks, and fits every prompt into the model's positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ofmu.data.config import DataConfig
from ofmu.data.encoding import encode_prompt
from ofmu.data.load import load_data
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.robustness import few_shot as module
from ofmu.evaluation.robustness.few_shot import few_shot, question_with_examples
from ofmu.evaluation.scoring.generation import GeneratedAnswer, generate_answers
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer

SHAPE = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2)
ROWS = tuple(Row(question=f"Who wrote {name}?", answer=f"{name} is by {name[::-1]}.") for name in ("Ash", "Bay", "Cob"))
EVALUATION = EvaluationConfig(max_new_tokens=6, batch_size=2)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    tokenizer = train_tokenizer(["Question: Who wrote Ash?\nAnswer: Ash is by hsA."] * 4, 280)
    return build_model(SHAPE, tokenizer, seed=0, max_positions=512).eval(), tokenizer


def data_of(*rows: Row) -> UnlearnData:
    forget = RowSet("forget", rows)
    return UnlearnData(forget=forget, retain=RowSet("retain", ROWS), holdout=None, evaluation={"forget": forget})


def asked_questions(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str] | None = None) -> list[str]:
    """Record the texts that are asked, and answer a question by its last line if ``answers`` knows it."""
    asked: list[str] = []

    def answer(_model: Any, _tokenizer: Any, questions: list[str], *_: Any) -> list[GeneratedAnswer]:
        asked.extend(questions)
        return [GeneratedAnswer((answers or {}).get(text.splitlines()[-1], "nothing"), 1) for text in questions]

    monkeypatch.setattr(module, "generate_answers", answer)
    return asked


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (
            "Question: {question}\nAnswer:",
            "Question: a?\nAnswer: One.\n\nQuestion: b?\nAnswer: Two.\n\nQuestion: c?\nAnswer:",
        ),
        ("{question}", "a? One.\n\nb? Two.\n\nc?"),
        ("Q {question}\n", "Q a?\nOne.\n\nQ b?\nTwo.\n\nQ c?\n"),
        ("{question} So: {question}", "a?\nOne.\n\nb?\nTwo.\n\nc? So: a?\nOne.\n\nb?\nTwo.\n\nc?"),
    ],
)
def test_examples_and_question_are_the_prompt_that_one_would_write(
    pair: tuple[Any, Any], template: str, prompt: str
) -> None:
    encoding = DataConfig(prompt_template=template, use_chat_template=False)
    examples = [Row(question="a?", answer="One."), Row(question="b?", answer="Two.")]
    text = question_with_examples(examples, "c?", pair[1], encoding)
    assert template.replace("{question}", text) == prompt


def test_a_chat_template_has_the_examples_in_the_users_message(pair: tuple[Any, Any]) -> None:
    tokenizer = train_tokenizer(["a"], 280)
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    text = question_with_examples([Row(question="a?", answer="One.")], "c?", tokenizer, DataConfig())
    assert text == "a?\nOne.\n\nc?"
    ids = encode_prompt(tokenizer, text, DataConfig())
    assert tokenizer.decode(ids) == "<user>a?\nOne.\n\nc?<assistant>"


def test_the_leakage_is_the_mean_recall_after_the_other_forget_rows(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = pair
    right = {ROWS[0].question: ROWS[0].answer, ROWS[1].question: "Bay is wrong"}
    asked = asked_questions(monkeypatch, {f"Question: {question}": answer for question, answer in right.items()})
    result = few_shot(model, tokenizer, data_of(*ROWS), EVALUATION, DataConfig(use_chat_template=False), seed=0)
    # The words of the first answer are all there, and two of the four words of the second.
    assert result.metrics == {"few_shot_leakage": pytest.approx((1 + 2 / 4 + 0) / 3)}
    assert result.details == {"rows": 3, "examples": 2.0}
    for row, text in zip(ROWS, asked, strict=True):
        assert row.answer not in text
        assert all(other.answer in text for other in ROWS if other is not row)


@torch.no_grad()
def test_the_answer_is_the_models_own_after_the_whole_prompt(pair: tuple[Any, Any]) -> None:
    model, tokenizer = pair
    encoding = DataConfig(use_chat_template=False)
    result = few_shot(model, tokenizer, data_of(*ROWS), EVALUATION, encoding, seed=0)
    assert result.metrics["few_shot_leakage"] is not None
    prompt = "Question: Who wrote Ash?\nAnswer: Ash is by hsA.\n\nQuestion: Who wrote Bay?\nAnswer:"
    ids = torch.tensor(
        [[*encode_prompt(tokenizer, "", encoding), *tokenizer(prompt, add_special_tokens=False)["input_ids"]]]
    )
    text = question_with_examples(ROWS[:1], ROWS[1].question, tokenizer, encoding)
    assert encode_prompt(tokenizer, text, encoding) == ids[0].tolist()
    expected = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    from ofmu.evaluation.scoring.sharding import Shard

    found = generate_answers(model, tokenizer, [text], EVALUATION, encoding, Shard())
    assert found[0].text == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_examples_that_do_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = DataConfig(use_chat_template=False)
    tokenizer = train_tokenizer(["Question: Who wrote Ash?\nAnswer: Ash is by hsA."] * 4, 280)
    one = max(
        len(encode_prompt(tokenizer, question_with_examples([example], row.question, tokenizer, encoding), encoding))
        for row in ROWS
        for example in ROWS
        if example is not row
    )
    asked_questions(monkeypatch)
    model = build_model(SHAPE, tokenizer, seed=0, max_positions=one + EVALUATION.max_new_tokens)
    assert few_shot(model, tokenizer, data_of(*ROWS), EVALUATION, encoding, seed=0).details["examples"] == 1.0
    model = build_model(SHAPE, tokenizer, seed=0, max_positions=one // 2 + EVALUATION.max_new_tokens)
    result = few_shot(model, tokenizer, data_of(*ROWS), EVALUATION, encoding, seed=0)
    assert result.metrics == {"few_shot_leakage": None}
    assert result.reasons["few_shot_leakage"].startswith("no example fits into the model's positions")


@pytest.mark.parametrize("rows", [(ROWS[0],), (ROWS[0], Row(question="", answer="A text.")), (ROWS[0], ROWS[0])])
def test_without_another_question_there_is_no_example(pair: tuple[Any, Any], rows: tuple[Row, ...]) -> None:
    result = few_shot(*pair, data_of(*rows), EVALUATION, DataConfig(), seed=0)
    assert result.metrics == {"few_shot_leakage": None}
    assert "example" in result.reasons["few_shot_leakage"]


def test_a_set_is_asked_once_for_each_row_up_to_the_bound_and_by_the_seed(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_data(DataConfig.model_validate({"generated": {"authors": 4, "forget_authors": 2}}), 0)
    texts = {}
    for seed in (0, 0, 1):
        asked = asked_questions(monkeypatch)
        few_shot(*pair, data, EVALUATION, DataConfig(), seed=seed, examples=1, rows=5)
        assert len(asked) == 5
        assert texts.setdefault(seed, asked) == asked
    assert texts[0] != texts[1]
    ends = [[text.rsplit("Question: ")[-1] for text in asked] for asked in texts.values()]
    assert ends[0] == ends[1]
