"""The numbers and the lengths of the rows that a run reads."""

from __future__ import annotations

from collections.abc import Sequence
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
    """False: no tokenizer is at hand, so every row counts as ``data.max_length`` tokens."""


@dataclass(frozen=True)
class _Encoded:
    """What :class:`ofmu.data.row_encoder.RowEncoder` reads of a model's config: no limits."""

    def get_text_config(self) -> _Encoded:
        return self


def workload(config: UnlearnConfig, model_directory: Path | None) -> Workload:
    """Load the rows and encode them.

    Args:
        config: the run.
        model_directory: a directory with the model's tokenizer. None: ``model.scratch`` gets a tokenizer here, and any
            other model counts ``data.max_length`` tokens per row.

    Raises:
        DataError: the rows cannot be loaded or encoded.
        ModelError: the tokenizer cannot be loaded.
    """
    data = load_data(config.data, config.seed)
    if model_directory is not None:
        tokenizer: Any = load_tokenizer(str(model_directory))
    elif config.model.path is None:
        tokenizer = train_tokenizer(_texts(data), config.model.scratch.vocab_size)
    else:
        return _longest_possible(config, data)
    encoder = RowEncoder(tokenizer, config.data, _Encoded())
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
    length = config.data.max_length
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
