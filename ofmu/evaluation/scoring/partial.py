"""A cheap look at a model in the middle of its run: a few rows of every evaluation set, without generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from ofmu.data.config import DataConfig
from ofmu.data.encoding import Tokenizer
from ofmu.data.questions import QuestionSet
from ofmu.data.rows import RowSet, UnlearnData
from ofmu.engine.base import Engine
from ofmu.evaluation.config import EvaluationConfig
from ofmu.evaluation.metrics.custom import with_functions
from ofmu.evaluation.metrics.summary import Metrics, metrics_of
from ofmu.evaluation.scores import Scores, hash_sample
from ofmu.evaluation.scoring.model import score_model
from ofmu.evaluation.sets import FORGET


class PartialEvaluation:
    """The evaluation on at most ``rows`` rows per set, the same rows for every run on the same data.

    Metrics keep their names and definitions. Without generation there is no ROUGE, so model utility is the harmonic
    mean of its other components; membership attacks and in-scope sets, which no objective is made of, are left out.
    Forget quality compares with the reference's scores on the same rows.
    """

    def __init__(
        self, data: UnlearnData, tokenizer: Tokenizer, evaluation: EvaluationConfig, encoding: DataConfig, rows: int
    ) -> None:
        without = {"rouge": False, "in_scope": False, "membership": False}
        self._evaluation, self._encoding = evaluation.model_copy(update=without), encoding
        self._data, self._tokenizer = reduced_data(data, rows), tokenizer
        forget = data.evaluation.get(FORGET)
        self._places = () if forget is None else hash_sample(forget.rows, rows)
        self._reference = cache(self._read_reference)

    def metrics(self, engine: Engine, reference: Path | None) -> Metrics:
        """Score the engine's model, which keeps its mode, and return its metrics; collective.

        Raises:
            ReferenceMismatchError: the reference covers other rows, or is under another truth-ratio definition.
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
        expected = None if reference is None else self._reference(reference)
        return with_functions(metrics_of, self._evaluation.custom_metrics)(scores, expected)

    def _read_reference(self, path: Path) -> Scores:
        return reduced_reference(Scores.load(path), self._places)


def reduced_data(data: UnlearnData, count: int) -> UnlearnData:
    """Return the data with at most ``count`` rows, and ``count`` multiple-choice questions, per evaluation set."""
    sets = {
        name: RowSet(found.name, tuple(found.rows[place] for place in hash_sample(found.rows, count)))
        for name, found in data.evaluation.items()
    }
    questions = {name: QuestionSet(found.name, found.questions[:count]) for name, found in data.questions.items()}
    return UnlearnData(
        forget=data.forget, retain=data.retain, holdout=data.holdout, evaluation=sets, questions=questions
    )


def reduced_reference(reference: Scores, places: Sequence[int]) -> Scores:
    """Return the reference's scores of the forget rows at ``places`` alone; places it lacks are left out."""
    rows = reference.sets.get(FORGET, ())
    kept = tuple(rows[place] for place in places if place < len(rows))
    return replace(reference, sets={FORGET: kept}, choices={})
