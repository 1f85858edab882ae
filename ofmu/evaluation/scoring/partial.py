"""A cheap evaluation of a model during its run: a few rows of every evaluation set, without generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer
from ofmu.data.questions import QuestionSet
from ofmu.data.rows import UnlearnData
from ofmu.engine.base import Engine
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.metrics.custom import with_custom_metrics
from ofmu.evaluation.metrics.summary import Metrics, metrics_of
from ofmu.evaluation.scores import Scores, hash_sample
from ofmu.evaluation.scoring.model import score_model
from ofmu.evaluation.sets import FORGET


class PartialEvaluation:
    """An evaluation on at most ``rows`` rows per set. Every run on the same data scores the same rows.

    Metrics keep their names and definitions. There is no generation and therefore no ROUGE, so model utility is the
    harmonic mean of its other components. Membership attacks and in-scope sets are left out too. A search whose trials
    are scored during their runs refuses objectives that need what is left out. Forget quality compares with the
    reference's scores on the same rows.
    """

    def __init__(
        self, data: UnlearnData, tokenizer: Tokenizer, evaluation: EvaluationConfig, encoding: DataConfig, rows: int
    ) -> None:
        left_out = {"rouge": False, "in_scope": False, "membership": False}
        self._evaluation, self._encoding = evaluation.model_copy(update=left_out), encoding
        self._data, self._tokenizer = reduced_data(data, rows), tokenizer
        forget = data.evaluation.get(FORGET)
        self._forget_indices = () if forget is None else hash_sample(forget.rows, rows)
        self._load_reference = cache(self._load_reduced_reference)

    def metrics(self, engine: Engine, reference: Path | None) -> Metrics:
        """Score the engine's model and return the model's metrics; collective. The model keeps its mode.

        Raises:
            ReferenceMismatchError: the reference covers other rows, or follows another truth-ratio definition.
        """
        scores = score_model(
            engine.model,
            self._tokenizer,
            self._data,
            self._evaluation,
            self._encoding,
            rank=engine.rank,
            world_size=engine.world_size,
            synchronized=engine.zero_stage == 3,
        )
        reference_scores = None if reference is None else self._load_reference(reference)
        return with_custom_metrics(metrics_of, self._evaluation.custom_metrics)(scores, reference_scores)

    def _load_reduced_reference(self, path: Path) -> Scores:
        return reduced_reference(Scores.load(path), self._forget_indices)


def reduced_data(data: UnlearnData, count: int) -> UnlearnData:
    """Return the data with at most ``count`` rows and ``count`` multiple-choice questions per evaluation set."""
    sets = {
        name: replace(row_set, rows=tuple(row_set.rows[index] for index in hash_sample(row_set.rows, count)))
        for name, row_set in data.evaluation.items()
    }
    questions = {
        name: QuestionSet(question_set.name, question_set.questions[:count])
        for name, question_set in data.questions.items()
    }
    return UnlearnData(
        forget=data.forget, retain=data.retain, holdout=data.holdout, evaluation=sets, questions=questions
    )


def reduced_reference(reference: Scores, indices: Sequence[int]) -> Scores:
    """Return the reference's scores of the forget rows at ``indices`` only. Indices past the last row are left out."""
    rows = reference.sets.get(FORGET, ())
    kept = tuple(rows[index] for index in indices if index < len(rows))
    return replace(reference, sets={FORGET: kept}, choices={})
