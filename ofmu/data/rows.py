"""The one in-memory form of every benchmark and of the user's own files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

from ofmu.data.questions import QuestionSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fact: a question (empty for plain text) and its answer, with the variants that evaluation needs."""

    question: str
    answer: str
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    paraphrased_question: str | None = None
    multi_hop_question: str | None = None
    """A question that reaches the same answer through another fact."""
    translated_question: str | None = None
    translated_answer: str | None = None
    translated_perturbed_answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowSet:
    """Named rows with a hash of their content, by which caches and reference scores are matched."""

    name: str
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) over the rows' fields in order; the name does not enter."""
        text = json.dumps([asdict(row) for row in self.rows], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class UnlearnData:
    """Training rows and evaluation sets of one unlearning problem.

    ``evaluation`` is keyed by ``forget``, ``retain``, ``real_authors`` and ``world_facts``, as far as they exist.
    """

    forget: RowSet
    retain: RowSet
    holdout: RowSet | None
    evaluation: Mapping[str, RowSet]
    questions: Mapping[str, QuestionSet] = field(default_factory=dict)
    """Multiple-choice questions, ``forget`` and ``utility``, where the benchmark has them."""

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) over all the sets' hashes and roles."""
        parts = {"forget": self.forget.content_hash, "retain": self.retain.content_hash}
        parts["holdout"] = self.holdout.content_hash if self.holdout else ""
        parts.update({f"evaluation/{name}": rows.content_hash for name, rows in self.evaluation.items()})
        parts.update({f"questions/{name}": group.content_hash for name, group in self.questions.items()})
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenised row: prompt and answer, the answer (EOS included) from index ``answer_start`` on."""

    input_ids: tuple[int, ...]
    answer_start: int

    @property
    def answer_length(self) -> int:
        """Number of answer tokens, EOS included."""
        return len(self.input_ids) - self.answer_start
