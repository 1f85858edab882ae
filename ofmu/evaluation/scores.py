"""Per-row scores of one model on the evaluation sets, and their JSON form. Metrics are computed from scores."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ofmu.data.rows import Row, row_key
from ofmu.errors import DataError
from ofmu.evaluation.sets import TRUTH_RATIOS, TruthRatio
from ofmu.io.files import read_json, write_json

ValueT = TypeVar("ValueT")

FORMAT = "ofmu-scores/2"
READABLE_FORMATS = (FORMAT, "ofmu-scores/1")
"""The first format lacks only keys that were added later. Those are read as missing."""


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """The negative log-likelihood of one answer, in nats. It is summed over the answer's tokens, EOS included."""

    nll: float
    tokens: int

    @property
    def mean(self) -> float:
        """Mean loss, in nats per token."""
        return self.nll / self.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScores:
    """Scores of one model on one row."""

    question: str
    ground_truth: str
    row_hash: str | None
    """:func:`row_hash` of the row. None: the scores come from a log that does not hold the texts of wrong answers."""
    answer: AnswerLoss | None
    """None: the scores come from a log that holds no losses of this set."""
    paraphrased: AnswerLoss | None = None
    perturbed: tuple[AnswerLoss, ...] = ()
    generated: str | None = None
    rouge: float | None = None
    """ROUGE-L recall of the generated text."""
    rouge_f1: float | None = None
    """ROUGE-L F1 of the generated text. Only sets of MUSE, LUME and RWKU have it."""
    extraction_strength: float | None = None
    exact_memorization: float | None = None
    min_k: float | None = None
    """:func:`ofmu.evaluation.metrics.membership.min_k` of the answer. This number and the two below are set on forget
    rows and holdout rows if ``evaluation.membership`` is true."""
    min_k_plus: float | None = None
    gradient_norm: float | None = None
    part: str | None = None
    """The benchmark's name for the part that the row belongs to. Only LUME has parts."""
    loss_above_reference: float | None = None
    """Mean loss minus the mean loss of the retrained model, in nats per token. Only logs hold this difference."""
    compressed_bytes: int | None = None
    """Size of the zlib-compressed answer, in bytes. It is set only if the scores come from a log that does not hold the
    text of the answer: see :func:`compressed_size`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceScores:
    """Scores of one model on one multiple-choice question."""

    answer: int
    """Index of the right choice."""
    letters: tuple[float, ...]
    """Log-likelihood of each choice's letter, in nats."""
    texts: tuple[float, ...]
    """Log-likelihood of each choice's text, in nats."""
    lengths: tuple[int, ...]
    """Number of characters of each choice's text."""

    def to_json(self) -> list[Any]:
        """Return plain JSON values. A log-likelihood that is not finite becomes null."""
        numbers = [[_finite_or_none(value) for value in values] for values in (self.letters, self.texts)]
        return [self.answer, *numbers, list(self.lengths)]

    @classmethod
    def from_json(cls, content: list[Any]) -> ChoiceScores:
        """Read the result of :meth:`to_json`. A null becomes NaN."""
        answer, *numbers, lengths = content
        letters, texts = (tuple(math.nan if value is None else float(value) for value in part) for part in numbers)
        return cls(answer=int(answer), letters=letters, texts=texts, lengths=tuple(map(int, lengths)))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one model, keyed by evaluation set."""

    model: str
    """The model's name in reports."""
    truth_ratio: TruthRatio
    """The definition under which metrics read the truth ratios."""
    sets: Mapping[str, tuple[RowScores, ...]]
    data_hash: str | None = None
    """Content hash of the data that was scored. None: the scores come from an official log."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Reasons of missing scores, keyed by the kind of score (``rouge``, ``extraction_strength``, ...)."""
    forward_tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens that the forward passes of all ranks read, padding included. Keys: ``forced`` (teacher forcing),
    ``generated``, ``gradient``, ``choices``."""
    choices: Mapping[str, tuple[ChoiceScores, ...]] = field(default_factory=dict)
    """Scores of multiple-choice questions, keyed by ``forget`` and ``utility``. Empty if the data has none."""

    def save(self, path: str | Path) -> None:
        """Write the scores as JSON. The write is atomic. A loss that is not finite is stored as null.

        Raises:
            StorageError: the file cannot be written.
        """
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read a file that :meth:`save` wrote. A null loss is read as NaN.

        Raises:
            DataError: the file is missing, is no JSON, or holds no scores.
        """
        return cls.from_json(read_json(path), str(path))

    def to_json(self) -> dict[str, Any]:
        """Return the scores as plain JSON values."""
        return {
            "format": FORMAT,
            "model": self.model,
            "truth_ratio": self.truth_ratio,
            "data_hash": self.data_hash,
            "notes": dict(self.notes),
            "forward_tokens": dict(self.forward_tokens),
            "sets": {name: [_row_to_json(row) for row in rows] for name, rows in self.sets.items()},
            "choices": {name: [score.to_json() for score in scores] for name, scores in self.choices.items()},
        }

    @classmethod
    def from_json(cls, content: Any, source: str) -> Scores:
        """Read the result of :meth:`to_json`.

        Args:
            content: the parsed JSON.
            source: the file's name in errors.

        Raises:
            DataError: the content holds no scores, or malformed scores.
        """
        if not isinstance(content, dict) or content.get("format") not in READABLE_FORMATS:
            raise DataError(f"The file {source} holds no scores of the format '{FORMAT}': make it with ofmu evaluate")
        if content.get("truth_ratio") not in TRUTH_RATIOS:
            raise DataError(f"The scores {source} name no known truth-ratio definition: make them again")
        try:
            return cls(
                model=str(content["model"]),
                truth_ratio=content["truth_ratio"],
                data_hash=content["data_hash"],
                notes={str(kind): str(note) for kind, note in content["notes"].items()},
                forward_tokens={str(kind): int(count) for kind, count in content.get("forward_tokens", {}).items()},
                sets={name: tuple(map(_row_from_json, rows)) for name, rows in content["sets"].items()},
                choices={
                    name: tuple(map(ChoiceScores.from_json, scores))
                    for name, scores in content.get("choices", {}).items()
                },
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            problem = f"{type(error).__name__} {error}"
            raise DataError(f"The scores {source} are malformed ({problem}): make them again") from error


def compressed_size(row: RowScores) -> int | None:
    """Return the size of a row's zlib-compressed answer, in bytes; None if neither the text nor the size is known."""
    if row.ground_truth:
        return len(zlib.compress(row.ground_truth.encode()))
    return row.compressed_bytes


def row_hash(row: Row) -> str:
    """Return :func:`ofmu.data.rows.row_key` of a row."""
    return row_key(row)


def hash_sample(rows: Sequence[Row], count: int) -> tuple[int, ...]:
    """Return the ascending indices of the ``count`` rows with the lowest content hashes.

    The sample depends on the content of the rows and not on their order. So every run on the same data takes the same
    sample.
    """
    return tuple(sorted(sorted(range(len(rows)), key=lambda index: row_hash(rows[index]))[:count]))


_OPTIONAL_NUMBERS = ("rouge", "extraction_strength", "exact_memorization", "min_k", "min_k_plus", "gradient_norm")

_RARE_FIELDS = ("rouge_f1", "part", "loss_above_reference", "compressed_bytes")


def _row_to_json(row: RowScores) -> dict[str, Any]:
    return {
        "question": row.question,
        "ground_truth": row.ground_truth,
        "row_hash": row.row_hash,
        "answer": _loss_to_json(row.answer),
        "paraphrased": _loss_to_json(row.paraphrased),
        "perturbed": [_loss_to_json(loss) for loss in row.perturbed],
        "generated": row.generated,
        **{name: _finite_or_none(getattr(row, name)) for name in _OPTIONAL_NUMBERS},
        # Files of other data are the same as before these fields were added.
        **{name: value for name in _RARE_FIELDS if (value := _finite_or_none(getattr(row, name))) is not None},
    }


def _row_from_json(content: Mapping[str, Any]) -> RowScores:
    size = content.get("compressed_bytes")
    return RowScores(
        question=str(content["question"]),
        ground_truth=str(content["ground_truth"]),
        row_hash=content["row_hash"],
        answer=_loss_or_none(content["answer"]),
        paraphrased=_loss_or_none(content["paraphrased"]),
        perturbed=tuple(map(_loss_from_json, content["perturbed"])),
        generated=content["generated"],
        rouge_f1=_optional_float(content.get("rouge_f1")),
        part=content.get("part"),
        loss_above_reference=_optional_float(content.get("loss_above_reference")),
        compressed_bytes=None if size is None else int(size),
        **{name: _optional_float(content.get(name)) for name in _OPTIONAL_NUMBERS},
    )


def _loss_to_json(loss: AnswerLoss | None) -> list[float | int | None] | None:
    return None if loss is None else [_finite_or_none(loss.nll), loss.tokens]


def _loss_or_none(content: list[Any] | None) -> AnswerLoss | None:
    return None if content is None else _loss_from_json(content)


def _loss_from_json(content: list[Any]) -> AnswerLoss:
    nll, tokens = content
    if int(tokens) < 1:
        raise ValueError(f"an answer of {tokens} tokens")
    return AnswerLoss(math.nan if nll is None else float(nll), int(tokens))


def _finite_or_none(value: ValueT) -> ValueT | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)
