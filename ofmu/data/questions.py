"""Multiple-choice questions in the schema of WMDP and MMLU: question, choices, index of the correct choice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ofmu.errors import DataError, nearest_name

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question and its choices. One choice is correct."""

    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the correct choice, from 0."""


@dataclass(frozen=True)
class QuestionSet:
    """Named questions and a hash of their content."""

    name: str
    questions: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.questions)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the questions in order. The name is not part of the hash."""
        text = json.dumps([asdict(question) for question in self.questions], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def question_from_record(record: Mapping[str, Any], source: str, number: int) -> Question:
    """Return the question of a record. The record's answer is an index from 0, or a letter from A.

    Args:
        record: a mapping with ``question``, ``choices`` and ``answer``.
        source: name of the file or data set, for errors.
        number: number of the record in its source, from 1, for errors.

    Raises:
        DataError: a column is missing or malformed.
    """
    where = f"Question {number} of {source}"
    for name in ("question", "choices", "answer"):
        if name not in record:
            raise DataError(f"{where} has no column '{name}': {nearest_name(name, map(str, record))}")
    question, choices, answer = record["question"], record["choices"], record["answer"]
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where} has no text in column 'question': write the question there")
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f"{where} needs a list of 2 to {len(LETTERS)} texts in column 'choices'")
    for choice in choices:
        if not _is_choice(choice):
            raise DataError(
                f"{where} has the choice {choice!r:.40} in column 'choices': write a text or a number there"
            )
    if isinstance(answer, str) and answer.strip().upper() in tuple(LETTERS[: len(choices)]):
        answer = LETTERS.index(answer.strip().upper())
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(
            f"{where} has the answer {answer!r}: write the index of one of its {len(choices)} choices, from 0, "
            "or its letter"
        )
    return Question(question=question, choices=tuple(map(str, choices)), answer=answer)


def _is_choice(value: Any) -> bool:
    """Return whether a value is a text or a number. Published questions may have empty texts."""
    if isinstance(value, str):
        return True
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
