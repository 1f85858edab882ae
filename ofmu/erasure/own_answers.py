"""Rows that a model makes itself: its answers to the questions of a request, and to neutral questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofmu.chain.rows import EarlierRows
from ofmu.data.config import ColumnsConfig
from ofmu.data.encoding import load_tokenizer
from ofmu.data.files import read_records
from ofmu.data.normalized import normalized
from ofmu.data.rows import Row
from ofmu.engine.build import resolve_device
from ofmu.erasure.kept_out import kept_out
from ofmu.erasure.neutral_questions import NEUTRAL_QUESTIONS
from ofmu.erasure.person import searched_text
from ofmu.errors import DataError
from ofmu.evaluation.scoring.generation import generate_answers
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.io.files import check_regular, looked_for
from ofmu.models.language import load_model
from ofmu.run_config import UnlearnConfig

_PHRASE = 5
"""Words in a row that show that an answer repeats a forget row."""
MIN_RETAIN = 8
"""With fewer usable answers to neutral questions there is no retain set."""


@dataclass(frozen=True)
class AnsweredQuestions:
    """Questions with a model's own answers."""

    rows: tuple[Row, ...]
    empty: int
    """Number of questions to which the model answered nothing."""


def read_questions(path: Path, columns: ColumnsConfig) -> list[str]:
    """Read the questions of a file: one per line of a ``.txt`` file, else the column of questions.

    Raises:
        DataError: the file is missing or malformed, holds no question, or holds a question twice.
    """
    questions = _lines(path) if path.suffix.lower() == ".txt" else _column(path, columns.question)
    if not questions:
        raise DataError(f"The file {path} holds no question: write one question per line, or a column of questions")
    first: dict[str, int] = {}
    for number, text in enumerate(questions, start=1):
        if first.setdefault(text, number) != number:
            raise DataError(f"Questions {first[text]} and {number} of {path} are the same: keep one of them")
    return questions


def answer_questions(model: str, questions: Sequence[str], config: UnlearnConfig) -> AnsweredQuestions:
    """Return the questions with the model's own greedy answers.

    Args:
        model: a directory or a hub name.
        questions: the questions.
        config: gives the device, the prompt and the number of new tokens.

    Raises:
        OfmuError: the model cannot be loaded, or a question does not fit it.
    """
    loaded: Any = load_model(model, config.model.attention).to(resolve_device(config.engine))
    loaded.eval()
    tokenizer = load_tokenizer(model, fallback=config.model.tokenizer)
    answers = generate_answers(loaded, tokenizer, questions, config.evaluation, config.data, Shard())
    rows = tuple(
        Row(question=question, answer=answer.text)
        for question, answer in zip(questions, answers, strict=True)
        if answer.text.strip()
    )
    return AnsweredQuestions(rows, len(questions) - len(rows))


def generate_retain_rows(
    model: str, forget: Sequence[Row], config: UnlearnConfig, earlier: Sequence[EarlierRows] = ()
) -> tuple[tuple[Row, ...], int]:
    """Return the model's own answers to neutral questions, and the number of answers that repeat a forget row.

    A model may answer any question with what it was trained on last. Answers that share five words in a row with a
    forget row would restore that row, and are left out. So are answers that repeat a row which an earlier request
    forgot or left out, or that name its person.

    Raises:
        DataError: fewer than eight answers are left.
        OfmuError: see :func:`answer_questions`.
    """
    answered = answer_questions(model, NEUTRAL_QUESTIONS, config).rows
    former = [row for request in earlier for row in (*request.forget, *request.left_out)]
    forgotten = {normalized(row) for row in forget}
    phrases = {phrase for row in (*forget, *former) for phrase in _phrases(searched_text(row))}
    of_earlier = kept_out(answered, earlier, with_parts=True)
    kept = tuple(
        row
        for index, row in enumerate(answered)
        if index not in of_earlier and normalized(row) not in forgotten and phrases.isdisjoint(_phrases(row.answer))
    )
    if len(kept) < MIN_RETAIN:
        raise DataError(
            f"Of {len(NEUTRAL_QUESTIONS)} neutral questions the model answers only {len(kept)} without repeating a "
            "forget row, which is too few to retain: give --retain FILE, or --corpus FILE with other rows"
        )
    return kept, len(answered) - len(kept)


def _phrases(text: str) -> Iterator[tuple[str, ...]]:
    words = text.casefold().split()
    yield from (tuple(words[start : start + _PHRASE]) for start in range(len(words) - _PHRASE + 1))


def _lines(path: Path) -> list[str]:
    if not path.exists():
        raise DataError(f"There is no file of questions {looked_for(path)}: check the path")
    try:
        check_regular(path)
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"The file of questions {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The file of questions {path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def _column(path: Path, name: str) -> list[str]:
    questions = []
    for number, record in enumerate(read_records(path), start=1):
        value = record.get(name)
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                f"Row {number} of {path} has no text in column '{name}': write a question there, or name the column "
                "with data.columns.question"
            )
        questions.append(value.strip())
    return questions
