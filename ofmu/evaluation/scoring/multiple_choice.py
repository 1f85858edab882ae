"""Log-likelihoods of the choices of multiple-choice questions: of each choice's letter, and of its text.

The prompt for letters is the prompt of the ``wmdp`` tasks of the lm-evaluation-harness.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ofmu.data.encoding import Tokenizer, encode_continuation
from ofmu.data.limits import ModelLimits
from ofmu.data.questions import LETTERS, Question, QuestionSet
from ofmu.data.rows import Example
from ofmu.evaluation.scores import ChoiceScores
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.evaluation.scoring.teacher_forcing import score_examples


def letter_prompt(question: Question) -> str:
    """Return the question with its lettered choices. A space and a letter continue this prompt."""
    choices = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=False))
    return f"{question.question.strip()}\n{choices}\nAnswer:"


def text_prompt(question: Question) -> str:
    """Return the question without its choices. A space and a choice's text continue this prompt."""
    return f"Question: {question.question.strip()}\nAnswer:"


def score_questions(
    model: Any,
    tokenizer: Tokenizer,
    sets: Mapping[str, QuestionSet],
    *,
    batch_size: int,
    max_length: int,
    shard: Shard,
) -> tuple[dict[str, tuple[ChoiceScores, ...]], int]:
    """Score every question's choices. The model must be in evaluation mode.

    Returns:
        The scores by set, on every rank, and the number of tokens that the forward passes read, padding included.

    Raises:
        DataError: a choice does not fit ``max_length`` tokens, or the model has too few positions.
        ModelError: the model has no embedding for a token.
    """
    questions = [question for group in sets.values() for question in group.questions]
    examples = [example for question in questions for example in _examples(tokenizer, question, max_length)]
    limits = ModelLimits(tokenizer, model.config)
    for example in examples:
        limits.check(example, "the multiple-choice questions")
    answers, tokens = score_examples(model, tokenizer, examples, batch_size, shard)
    log_likelihoods = iter([-answer.nll for answer in answers])
    scores = iter([_next_scores(question, log_likelihoods) for question in questions])
    return {name: tuple(next(scores) for _ in group.questions) for name, group in sets.items()}, tokens


def _examples(tokenizer: Tokenizer, question: Question, max_length: int) -> Iterator[Example]:
    prompt = letter_prompt(question)
    for letter in LETTERS[: len(question.choices)]:
        yield encode_continuation(tokenizer, prompt, f" {letter}", max_length)
    prompt = text_prompt(question)
    for choice in question.choices:
        yield encode_continuation(tokenizer, prompt, f" {choice}", max_length)


def _next_scores(question: Question, log_likelihoods: Iterator[float]) -> ChoiceScores:
    """Take one question's log-likelihoods from the iterator, in the order of :func:`_examples`."""
    letters = tuple(next(log_likelihoods) for _ in question.choices)
    texts = tuple(next(log_likelihoods) for _ in question.choices)
    lengths = tuple(max(1, len(choice)) for choice in question.choices)
    return ChoiceScores(answer=question.answer, letters=letters, texts=texts, lengths=lengths)
