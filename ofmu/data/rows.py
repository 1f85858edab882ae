"""Rows of text. Every source of text gives its data in these classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from ofmu.data.questions import QuestionSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fact: a question, its answer, and the variants that the evaluation scores."""

    question: str
    """Empty for plain text."""
    answer: str
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    """Wrong answers."""
    paraphrased_question: str | None = None
    multi_hop_question: str | None = None
    """A question that leads to the same answer through another fact."""
    translated_question: str | None = None
    translated_answer: str | None = None
    translated_perturbed_answers: tuple[str, ...] = ()
    alternate_answer: str | None = None
    """A plausible answer with other facts, which AltPO trains in place of the answer. It is not scored."""
    entity: str | None = None
    """The part of the answer that states the fact. The unlearning depth is measured on its tokens."""


@dataclass(frozen=True)
class Prompting:
    """How the rows of an evaluation set become prompts, where a benchmark fixes it."""

    template: str
    """Text before an answer, with ``{question}``. It replaces ``data.prompt_template`` and a chat template."""
    max_new_tokens: int
    """Upper bound on the tokens of a generated answer, in place of ``evaluation.max_new_tokens``."""


@dataclass(frozen=True)
class RowSet:
    """Named rows and a hash of their content. The cache and the check of reference scores compare the hash."""

    name: str
    rows: tuple[Row, ...]
    prompting: Prompting | None = None
    """None: the prompts of the config."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """The benchmark's name for the part that a row belongs to, by :func:`row_key` of the row. Empty: no parts."""
    file: str = ""
    """The user's file that the rows come from. Empty: there is none."""
    numbers: tuple[int, ...] = ()
    """Each row's number from 1 in its source. Empty: all rows of the source are here, in order."""

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, index: int) -> str:
        """Return words for where a row stands. A message must not hold its text, which may be what is to be forgotten.

        Args:
            index: index of the row, from 0.
        """
        number = self.numbers[index] if self.numbers else index + 1
        return f"row {number} of {self.file}" if self.file else f"{self.name} row {number}"

    def subset(self, indices: Sequence[int]) -> RowSet:
        """Return the set with only some of its rows, which keep their numbers."""
        numbers = tuple(self.numbers[index] if self.numbers else index + 1 for index in indices)
        return replace(self, rows=tuple(self.rows[index] for index in indices), numbers=numbers)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the fields of all rows in order, and of the prompting. Name and places do not count."""
        fields = [_fields(row) for row in self.rows] + ([asdict(self.prompting)] if self.prompting else [])
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


_LATER_FIELDS = ("alternate_answer", "entity")


def _fields(row: Row) -> dict[str, Any]:
    """Return the fields of a row. Rows without the later fields keep the hash that they had before these existed."""
    return {name: value for name, value in asdict(row).items() if value is not None or name not in _LATER_FIELDS}


def row_key(row: Row) -> str:
    """Return SHA-256 (hex) over the fields of a row that its scores depend on."""
    parts = [row.question, row.answer, row.paraphrased_answer, list(row.perturbed_answers)]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class UnlearnData:
    """Training rows and evaluation sets of one unlearning problem."""

    forget: RowSet
    retain: RowSet
    holdout: RowSet | None
    """Rows that no model is trained on; None if the source has none."""
    evaluation: Mapping[str, RowSet]
    """Scored rows by set: ``forget`` and ``retain``, and for some sources ``real_authors`` and ``world_facts``."""
    questions: Mapping[str, QuestionSet] = field(default_factory=dict)
    """Multiple-choice questions by set, ``forget`` and ``utility``. Empty if the source has none."""

    def prompting_of(self, name: str) -> Prompting | None:
        """Return how the rows of an evaluation set become prompts. None: by the data section of the config."""
        row_set = self.evaluation.get(name)
        return None if row_set is None else row_set.prompting

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the roles and hashes of all sets."""
        parts = {"forget": self.forget.content_hash, "retain": self.retain.content_hash}
        parts["holdout"] = self.holdout.content_hash if self.holdout else ""
        parts.update({f"evaluation/{name}": rows.content_hash for name, rows in self.evaluation.items()})
        parts.update({f"questions/{name}": group.content_hash for name, group in self.questions.items()})
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenised row: the tokens of the prompt, then the tokens of the answer."""

    input_ids: tuple[int, ...]
    answer_start: int
    """Index of the first answer token."""

    @property
    def answer_length(self) -> int:
        """Number of answer tokens. EOS is one of them unless the answer was cut."""
        return len(self.input_ids) - self.answer_start
