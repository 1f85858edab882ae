"""Log-likelihoods of choices equal one forward pass per choice, and equal lm-eval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ofmu.data.questions import Question, QuestionSet, question_from_record
from ofmu.errors import DataError
from ofmu.evaluation.metrics.choices import choice_accuracy, letter_accuracy
from ofmu.evaluation.scores import ChoiceScores
from ofmu.evaluation.scoring.multiple_choice import letter_prompt, score_questions, text_prompt
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer

QUESTIONS = (
    Question(
        question="Which moss glows at night?", choices=("Silver moss", "Red moss", "A moss of glass", "None"), answer=2
    ),
    Question(question=" Who keeps the lighthouse? ", choices=("Ada", "Bo", "The old keeper Cyrus", "Dot"), answer=0),
    Question(question="What follows rain?", choices=("Mist", "A long and quiet evening", "Sun", "Hail"), answer=3),
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = [letter_prompt(question) for question in QUESTIONS] * 3
    return train_tokenizer(texts, 300)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    shape = ScratchModelConfig(hidden_size=32, intermediate_size=48, vocab_size=300)
    built = build_model(shape, tokenizer, seed=3, max_positions=256)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return built.eval()


@pytest.fixture(scope="module")
def scores(model: Any, tokenizer: Any) -> tuple[ChoiceScores, ...]:
    sets = {"forget": QuestionSet("forget", QUESTIONS)}
    found, tokens = score_questions(model, tokenizer, sets, batch_size=5, max_length=200, shard=Shard())
    assert tokens > 0
    return found["forget"]


def log_likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    own = len(tokenizer(context)["input_ids"])
    ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
    return sum(float(log_probs[at - 1, ids[0, at]]) for at in range(own, ids.shape[1]))


def test_every_choice_has_the_likelihood_of_a_single_pass(
    model: Any, tokenizer: Any, scores: tuple[ChoiceScores, ...]
) -> None:
    for question, score in zip(QUESTIONS, scores, strict=True):
        letters = [log_likelihood(model, tokenizer, letter_prompt(question), f" {letter}") for letter in "ABCD"]
        texts = [log_likelihood(model, tokenizer, text_prompt(question), f" {text}") for text in question.choices]
        np.testing.assert_allclose(score.letters, letters, rtol=1e-4)
        np.testing.assert_allclose(score.texts, texts, rtol=1e-4)
        assert score.lengths == tuple(map(len, question.choices))
        assert score.answer == question.answer


def test_lm_eval_gives_the_same_likelihoods(model: Any, tokenizer: Any, scores: tuple[ChoiceScores, ...]) -> None:
    pytest.importorskip("lm_eval", reason="the lm-eval package is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu", add_bos_token=True)
    pairs = [(letter_prompt(question), f" {letter}") for question in QUESTIONS for letter in "ABCD"]
    pairs += [(text_prompt(question), f" {text}") for question in QUESTIONS for text in question.choices]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    expected = [value for value, _ in harness.loglikelihood(requests)]
    likelihoods = [value for score in scores for value in score.letters]
    likelihoods += [value for score in scores for value in score.texts]
    np.testing.assert_allclose(likelihoods, expected, rtol=1e-4)


def test_accuracies_count_right_answers_and_divide_by_length() -> None:
    one = ChoiceScores(answer=1, letters=(-3.0, -1.0), texts=(-4.0, -6.0), lengths=(2, 6))
    two = ChoiceScores(answer=0, letters=(-3.0, -1.0), texts=(-4.0, -6.0), lengths=(2, 6))
    assert letter_accuracy([one, two]) == 0.5
    assert choice_accuracy([one]) == 1.0, "−6 over 6 characters is more likely per character than −4 over 2"
    assert choice_accuracy([two]) == 0.0


def test_a_long_question_is_cut_at_its_start_and_a_long_choice_raises(model: Any, tokenizer: Any) -> None:
    question = Question(question="word " * 300, choices=("Yes", "No"), answer=0)
    sets = {"forget": QuestionSet("forget", (question,))}
    found, _ = score_questions(model, tokenizer, sets, batch_size=4, max_length=64, shard=Shard())
    assert all(map(math.isfinite, found["forget"][0].letters))
    long = Question(question="Which?", choices=("word " * 100, "No"), answer=0)
    with pytest.raises(DataError, match=r"data\.max_length"):
        score_questions(
            model, tokenizer, {"forget": QuestionSet("forget", (long,))}, batch_size=4, max_length=64, shard=Shard()
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 4}, "answer 4"),
        ({"answer": "E"}, "answer 'E'"),
        ({"answer": ""}, "answer ''"),
        ({"answer": " "}, "answer ' '"),
        ({"answer": "AB"}, "answer 'AB'"),
        ({"answer": "bc"}, "answer 'bc'"),
        ({"choices": ["a", None, "c"]}, "choice None"),
        ({"choices": ["a", math.nan, "c"]}, "choice nan"),
        ({"choices": ["a", {"text": "b"}, "c"]}, "choice {'text': 'b'}"),
        ({"choices": "one"}, "list of 2"),
        ({"question": " "}, "no text"),
    ],
)
def test_a_malformed_question_raises_with_its_number(change: dict[str, Any], message: str) -> None:
    record = {"question": "Q?", "choices": ["a", "b", "c", "d"], "answer": 1} | change
    with pytest.raises(DataError, match=r"Question 7 of wmdp\.json") as error:
        question_from_record(record, "wmdp.json", 7)
    assert message in str(error.value)


def test_an_answer_may_be_a_letter() -> None:
    record = {"question": "Q?", "choices": ["a", "b", "c", "d"], "answer": "C"}
    assert question_from_record(record, "wmdp.json", 1).answer == 2


def test_a_choice_may_be_a_number_or_empty() -> None:
    record = {"question": "How many?", "choices": [1, 2.5, "none", ""], "answer": 0}
    assert question_from_record(record, "wmdp.json", 1).choices == ("1", "2.5", "none", "")


def test_choice_scores_survive_json() -> None:
    score = ChoiceScores(answer=1, letters=(-3.0, math.nan), texts=(-4.0, -6.0), lengths=(2, 6))
    back = ChoiceScores.from_json(score.to_json())
    assert (back.answer, back.texts, back.lengths) == (1, (-4.0, -6.0), (2, 6))
    assert back.letters[0] == -3.0
    assert math.isnan(back.letters[1])


def test_a_question_whose_start_is_cut_is_warned_of_with_the_share(
    model: Any, tokenizer: Any, recwarn: pytest.WarningsRecorder
) -> None:
    long = Question(question="Once upon a time " * 5 + QUESTIONS[2].question, choices=QUESTIONS[2].choices, answer=3)
    sets = {"forget": QuestionSet("forget", QUESTIONS), "utility": QuestionSet("utility", (QUESTIONS[0], long))}

    def score(length: int) -> None:
        score_questions(model, tokenizer, sets, batch_size=5, max_length=length, shard=Shard())

    lengths = []
    for question in sets["utility"].questions:
        for prompt, ends in ((letter_prompt, "ABCD"), (text_prompt, question.choices)):
            lengths += [len(tokenizer(f"{prompt(question)} {end}")["input_ids"]) for end in ends]
    score(max(lengths))
    assert len(recwarn) == 0
    limit = max(lengths) - 10
    score(limit)
    cut = sum(max(length - limit, 0) for length in lengths)
    assert cut >= 10
    (warning,) = recwarn
    assert str(warning.message) == (
        f"Multiple-choice questions are cut at data.max_length {limit}, and their start is not read (utility "
        f"{cut / sum(lengths):.1%} of the tokens, in 1 of 2 questions): raise data.max_length"
    )
