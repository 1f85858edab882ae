"""The numbers and the lengths of the rows that a run reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ofmu.data.encoding import load_tokenizer
from ofmu.data.load import load_data
from ofmu.data.row_encoder import RowEncoder
from ofmu.data.rows import Example, Row, UnlearnData
from ofmu.evaluation.config import EvaluationConfig
from ofmu.models.scratch import train_tokenizer
from ofmu.run_config import UnlearnConfig

_LARGEST_VOCABULARY = 2**18
"""Bound on the vocabulary of a tokenizer that is trained here. The rows hold far fewer different words."""
_LONGEST = 2**17
"""Bound on the tokens of a row that was not encoded."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a plan knows of the rows."""

    forget_rows: int
    retain_rows: int
    longest: int
    """Tokens of the longest training row."""
    forget_tokens: float
    """Mean tokens of a forget row."""
    retain_tokens: float
    """Mean tokens of a retain row."""
    longest_prompt: int
    """Tokens of the longest prompt that is scored."""
    longest_answer: int
    """Tokens of the longest answer that is scored."""
    evaluation_rows: int
    """Answers that an evaluation scores."""
    evaluation_tokens: float
    """Tokens that an evaluation reads to score answers and to generate at most."""
    measured: bool
    """False: the rows were not encoded, and each counts as ``data.max_length`` tokens."""


@dataclass(frozen=True)
class _Limits:
    """What :class:`ofmu.data.limits.ModelLimits` reads of a model's config."""

    vocab_size: int | None
    max_position_embeddings: int | None

    def get_text_config(self) -> _Limits:
        return self


def workload(
    config: UnlearnConfig, model: Mapping[str, Any], model_directory: Path | None, *, encode: bool = True
) -> Workload:
    """Load the rows and encode them.

    Args:
        config: the run.
        model: the content of the model's ``config.json``.
        model_directory: a directory with the model's tokenizer. None: a tokenizer for ``model.scratch`` is trained.
        encode: False: every row counts as ``data.max_length`` tokens.

    Raises:
        DataError: the rows cannot be loaded or encoded, or a row is longer than the model has positions.
        ModelError: the tokenizer cannot be loaded, or gives an id for which the model has no embedding.
    """
    data = load_data(config.data, config.seed)
    if not encode:
        return _longest_possible(config, data)
    if model_directory is not None:
        tokenizer: Any = load_tokenizer(str(model_directory), fallback=config.model.tokenizer)
    else:
        tokenizer = train_tokenizer(_texts(data), min(config.model.scratch.vocab_size, _LARGEST_VOCABULARY))
    limits = _Limits(model.get("vocab_size"), model.get("max_position_embeddings"))
    encoder = RowEncoder(tokenizer, config.data, limits)
    forget, retain = (encoder.encode_rows(rows.name, rows.rows) for rows in (data.forget, data.retain))
    scored = [
        example
        for rows in data.evaluation.values()
        for row in rows.rows[: config.evaluation.max_rows if rows.name != data.forget.name else None]
        for answer in _answers(row)
        for example in encoder.encode("evaluation", row.question, answer)
    ]
    scored = scored or forget
    return Workload(
        forget_rows=len(forget),
        retain_rows=len(retain),
        longest=max(len(example.input_ids) for example in (*forget, *retain)),
        forget_tokens=_mean_length(forget),
        retain_tokens=_mean_length(retain),
        longest_prompt=max(example.answer_start for example in scored),
        longest_answer=max(example.answer_length for example in scored),
        evaluation_rows=len(scored),
        evaluation_tokens=sum(len(e.input_ids) for e in scored) + _generated(data, config.evaluation),
        measured=True,
    )


def _longest_possible(config: UnlearnConfig, data: UnlearnData) -> Workload:
    length = min(config.data.max_length, _LONGEST)
    scored = sum(len(_answers(row)) for rows in data.evaluation.values() for row in rows.rows)
    return Workload(
        forget_rows=len(data.forget),
        retain_rows=len(data.retain),
        longest=length,
        forget_tokens=length,
        retain_tokens=length,
        longest_prompt=length // 2,
        longest_answer=length - length // 2,
        evaluation_rows=max(1, scored),
        evaluation_tokens=scored * length + _generated(data, config.evaluation),
        measured=False,
    )


def _generated(data: UnlearnData, evaluation: EvaluationConfig) -> int:
    """Return the most tokens that an evaluation generates."""
    questions = sum(bool(row.question) for rows in data.evaluation.values() for row in rows.rows)
    return questions * evaluation.max_new_tokens if evaluation.rouge else 0


def _answers(row: Row) -> list[str]:
    return [row.answer, *([row.paraphrased_answer] if row.paraphrased_answer else []), *row.perturbed_answers]


def _texts(data: UnlearnData) -> list[str]:
    return [f"{row.question} {row.answer}" for rows in (data.forget, data.retain) for row in rows.rows]


def _mean_length(examples: Sequence[Example]) -> float:
    return fmean(len(example.input_ids) for example in examples)
