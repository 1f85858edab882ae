"""Log-likelihoods of the choices of multiple-choice questions: of each choice's letter, and of its text.

The prompt for letters is the prompt of the ``wmdp`` tasks of the lm-evaluation-harness.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ofmu.data.encoding import Tokenizer, encode_continuation
from ofmu.data.limits import ModelLimits
from ofmu.data.questions import LETTERS, Question, QuestionSet
from ofmu.data.rows import Example
from ofmu.evaluation.scores import ChoiceScores
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.evaluation.scoring.teacher_forcing import score_examples
from ofmu.io.text import counted


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
    encoded = {
        name: [list(encoded_choices(tokenizer, question, max_length)) for question in group.questions]
        for name, group in sets.items()
    }
    _warn_of_cuts(encoded, max_length)
    examples = [example for group in encoded.values() for choices in group for example, _ in choices]
    limits = ModelLimits(tokenizer, model.config)
    for example in examples:
        limits.check(example, "the multiple-choice questions")
    answers, tokens = score_examples(model, tokenizer, examples, batch_size, shard)
    log_likelihoods = iter([-answer.nll for answer in answers])
    scores = iter([_next_scores(question, log_likelihoods) for question in questions])
    return {name: tuple(next(scores) for _ in group.questions) for name, group in sets.items()}, tokens


def encoded_choices(tokenizer: Tokenizer, question: Question, max_length: int) -> Iterator[tuple[Example, int]]:
    """Yield a question's examples, of letters and then of texts, each with the number of cut tokens."""
    prompt = letter_prompt(question)
    for letter in LETTERS[: len(question.choices)]:
        yield encode_continuation(tokenizer, prompt, f" {letter}", max_length)
    prompt = text_prompt(question)
    for choice in question.choices:
        yield encode_continuation(tokenizer, prompt, f" {choice}", max_length)


def _warn_of_cuts(encoded: Mapping[str, Sequence[Sequence[tuple[Example, int]]]], max_length: int) -> None:
    """Warn once of all questions whose start was cut, with the share of each set's tokens. Say nothing if none was."""
    parts = []
    for name, group in encoded.items():
        cut = sum(count for choices in group for _, count in choices)
        tokens = cut + sum(len(example.input_ids) for choices in group for example, _ in choices)
        questions = sum(any(count for _, count in choices) for choices in group)
        if cut:
            parts.append(
                f"{name} {cut / tokens:.1%} of the tokens, in {questions} of {counted(len(group), 'question')}"
            )
    if parts:
        warnings.warn(
            f"Multiple-choice questions are cut at data.max_length {max_length}, and their start is not read "
            f"({'; '.join(parts)}): raise data.max_length",
            stacklevel=3,
        )


def _next_scores(question: Question, log_likelihoods: Iterator[float]) -> ChoiceScores:
    """Take one question's log-likelihoods from the iterator, in the order of :func:`encoded_choices`."""
    letters = tuple(next(log_likelihoods) for _ in question.choices)
    texts = tuple(next(log_likelihoods) for _ in question.choices)
    lengths = tuple(max(1, len(choice)) for choice in question.choices)
    return ChoiceScores(answer=question.answer, letters=letters, texts=texts, lengths=lengths)
