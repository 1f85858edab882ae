"""The numbers and the lengths of the rows that a run reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ofmu.data.encoding import encode_prompt, load_tokenizer
from ofmu.data.load import load_data
from ofmu.data.questions import Question
from ofmu.data.row_encoder import RowEncoder
from ofmu.data.rows import Example, Row, RowSet, UnlearnData
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.robustness.attacks import SAMPLED_ROWS, SAMPLES, asked_rows
from ofmu.evaluation.robustness.divergence import COMPARED_SETS
from ofmu.evaluation.scoring.multiple_choice import encoded_choices
from ofmu.evaluation.scoring.prompt_blocks import tokens_without_padding
from ofmu.evaluation.sets import FORGET, IN_SCOPE_PREFIX
from ofmu.models.files import has_tokenizer
from ofmu.models.scratch import train_tokenizer
from ofmu.models.sizes import sizes_of
from ofmu.run_config import UnlearnConfig

_LARGEST_VOCABULARY = 2**18
"""Bound on the vocabulary of a tokenizer that is trained here. The rows hold far fewer different words."""
_LONGEST = 2**17
"""Bound on the tokens of a row that was not encoded."""
_MOST_QUESTIONS = 500
"""Multiple-choice questions of each set that are encoded. All questions of MMLU would take a minute."""


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
    """Tokens that an evaluation reads to score answers and multiple-choice questions, and to generate at most."""
    scored_sets: tuple[tuple[int, float], ...] = ()
    """Rows of each evaluation set, and the tokens that are read to score their answers; the same of each set of
    multiple-choice questions. Hard questions about the forget rows are left out."""
    divergence_rows: int = 0
    """Rows on which ``evaluation.kl`` compares a run with the target."""
    divergence_tokens: float = 0.0
    """Tokens of these rows. The target and the run read them once each."""
    divergence_answer_tokens: float = 0.0
    """Tokens of their answers."""
    sampled_rows: int = 0
    """Questions that the attack ``sampling`` asks."""
    sampled_tokens: float = 0.0
    """Tokens that the attack reads and generates at most, with all samples."""
    depth_tokens: float = 0.0
    """Tokens that ``evaluation.depth`` reads at most, with all models and layers, without padding."""
    measured: bool
    """False: the rows were not encoded. Each counts as ``data.max_length`` tokens, and so does each prompt of a
    multiple-choice question."""

    def partial_tokens(self, rows: int) -> float:
        """Return the tokens that an evaluation on at most ``rows`` rows of each set reads. It generates nothing."""
        return sum(tokens * min(1.0, rows / max(1, count)) for count, tokens in self.scored_sets)


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
        return _longest_possible(config, data, sizes_of(model).layers)
    if model_directory is not None:
        named = config.model.tokenizer
        own = named is None or has_tokenizer(model_directory)
        tokenizer: Any = load_tokenizer(str(model_directory) if own else str(named))
    else:
        tokenizer = train_tokenizer(_texts(data), min(config.model.scratch.vocab_size, _LARGEST_VOCABULARY))
    limits = _Limits(model.get("vocab_size"), model.get("max_position_embeddings"))
    encoder = RowEncoder(tokenizer, config.data, limits)
    forget, retain = (encoder.encode_rows(rows.name, rows.rows) for rows in (data.forget, data.retain))
    scored_sets = {name: _scored(rows, data, config.evaluation) for name, rows in data.evaluation.items()}
    encoded = {
        name: [
            example
            for row in rows
            for answer in _answers(row)
            for example in encoder.encode("evaluation", row.question, answer)
        ]
        for name, rows in scored_sets.items()
    }
    scored = [example for examples in encoded.values() for example in examples] or forget
    compared = [
        example
        for name in COMPARED_SETS
        for row in scored_sets.get(name, ())
        for example in encoder.encode("evaluation", row.question, row.answer)
    ]
    facts = [
        example
        for row in data.evaluation.get(FORGET, data.forget).rows
        for example in encoder.encode("evaluation", row.question, row.answer)
    ]
    choices = tuple(
        (len(group), _question_tokens(tokenizer, group.questions, config.data.max_length))
        for group in data.questions.values()
    )
    asked = [len(encode_prompt(tokenizer, row.question, config.data)) for row in asked_rows(data, SAMPLED_ROWS)]
    return Workload(
        forget_rows=len(forget),
        retain_rows=len(retain),
        longest=max(len(example.input_ids) for example in (*forget, *retain)),
        forget_tokens=_mean_length(forget),
        retain_tokens=_mean_length(retain),
        longest_prompt=max(example.answer_start for example in scored),
        longest_answer=max(example.answer_length for example in scored),
        evaluation_rows=len(scored),
        evaluation_tokens=sum(len(e.input_ids) for e in scored)
        + sum(tokens for _, tokens in choices)
        + _generated(data, config.evaluation),
        scored_sets=tuple(
            (len(scored_sets[name]), float(sum(len(example.input_ids) for example in examples)))
            for name, examples in encoded.items()
            if not name.startswith(IN_SCOPE_PREFIX)
        )
        + choices,
        divergence_rows=len(compared),
        divergence_tokens=sum(len(example.input_ids) for example in compared),
        divergence_answer_tokens=sum(example.answer_length for example in compared),
        sampled_rows=len(asked),
        sampled_tokens=SAMPLES * (sum(asked) + len(asked) * config.evaluation.max_new_tokens),
        depth_tokens=_depth_tokens(
            sum(len(example.input_ids) for example in facts),
            sum(example.answer_length for example in facts),
            sizes_of(model).layers,
        ),
        measured=True,
    )


def _question_tokens(tokenizer: Any, questions: Sequence[Question], max_length: int) -> float:
    """Return the tokens that are read to score multiple-choice questions; of many, from evenly spaced ones."""
    encoded = questions[:: -(-len(questions) // _MOST_QUESTIONS)]
    examples = [example for question in encoded for example, _ in encoded_choices(tokenizer, question, max_length)]
    return tokens_without_padding(examples) * len(questions) / len(encoded)


def _depth_tokens(tokens: int, of_facts: int, blocks: int) -> int:
    """Return the tokens that a measurement of depth reads: whole rows, and for the logit lens the facts alone."""
    return (4 + 2 * blocks) * tokens + 3 * blocks * of_facts


def _longest_possible(config: UnlearnConfig, data: UnlearnData, blocks: int) -> Workload:
    length = min(config.data.max_length, _LONGEST)
    scored = sum(len(_answers(row)) for rows in data.evaluation.values() for row in rows.rows)
    asked = len(asked_rows(data, SAMPLED_ROWS))
    compared = sum(
        len(_scored(data.evaluation[name], data, config.evaluation))
        for name in COMPARED_SETS
        if name in data.evaluation
    )
    # A question has a prompt for its letters and a prompt for its texts.
    choices = tuple((len(group), 2.0 * length * len(group)) for group in data.questions.values())
    return Workload(
        forget_rows=len(data.forget),
        retain_rows=len(data.retain),
        longest=length,
        forget_tokens=length,
        retain_tokens=length,
        longest_prompt=length // 2,
        longest_answer=length - length // 2,
        evaluation_rows=max(1, scored),
        evaluation_tokens=scored * length + sum(tokens for _, tokens in choices) + _generated(data, config.evaluation),
        scored_sets=tuple(
            (len(rows), float(length * sum(len(_answers(row)) for row in rows.rows)))
            for name, rows in data.evaluation.items()
            if not name.startswith(IN_SCOPE_PREFIX)
        )
        + choices,
        divergence_rows=compared,
        divergence_tokens=compared * length,
        divergence_answer_tokens=compared * (length - length // 2),
        sampled_rows=asked,
        sampled_tokens=SAMPLES * asked * (length // 2 + config.evaluation.max_new_tokens),
        depth_tokens=_depth_tokens(len(data.forget) * length, len(data.forget) * (length - length // 2), blocks),
        measured=False,
    )


def _scored(rows: RowSet, data: UnlearnData, evaluation: EvaluationConfig) -> tuple[Row, ...]:
    return rows.rows[: evaluation.max_rows if rows.name != data.forget.name else None]


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
