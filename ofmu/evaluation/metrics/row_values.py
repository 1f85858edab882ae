"""Arrays of per-row scores, checked for missing and non-finite values. All metrics start from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ofmu.evaluation.metrics import formulas
from ofmu.evaluation.metrics.formulas import FloatArray
from ofmu.evaluation.scores import RowScores, Scores
from ofmu.evaluation.sets import FORGET, GENERAL_SETS, RETAIN, UTILITY_SETS

LazyMetrics = Mapping[str, Callable[[], float]]
"""Functions that compute metrics, by the metric's name. A function may raise MissingScoresError or NonFiniteError."""


class MissingScoresError(Exception):
    """The scores do not hold what a metric needs."""


class NonFiniteError(Exception):
    """The scores hold what a metric needs, but the model's output was NaN or infinite."""


def rows_of(scores: Scores, set_name: str) -> tuple[RowScores, ...]:
    """Return the rows of a set.

    Raises:
        MissingScoresError: the set has no rows.
    """
    rows = scores.sets.get(set_name, ())
    if not rows:
        raise MissingScoresError(f"the data has no evaluation set '{set_name}'")
    return rows


def finite(scores: Scores, set_name: str, values: Sequence[float]) -> FloatArray:
    """Return numbers of a set's rows as an array.

    Raises:
        NonFiniteError: a number is NaN or infinite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise NonFiniteError(f"'{scores.model}' gives a non-finite loss on the set '{set_name}'")
    return array


def answer_losses(scores: Scores, set_name: str) -> FloatArray:
    """Return the mean loss of each row's answer in nats per token, shape (rows,).

    Raises:
        MissingScoresError: a row has no loss. Only logs lack losses.
        NonFiniteError: a loss is NaN or infinite.
    """
    losses = [row.answer for row in rows_of(scores, set_name)]
    known = [loss.mean for loss in losses if loss is not None]
    if len(known) < len(losses):
        raise MissingScoresError(f"row {losses.index(None) + 1} of the set '{set_name}' has no loss of its answer")
    return finite(scores, set_name, known)


def row_values(scores: Scores, set_name: str, attribute: str) -> list[float]:
    """Return one attribute of every row of a set.

    Raises:
        MissingScoresError: a row lacks the attribute. The reason is the scores' note on the attribute, if there is one.
    """
    values = [getattr(row, attribute) for row in rows_of(scores, set_name)]
    if None in values:
        default = f"row {values.index(None) + 1} of the set '{set_name}' has no {attribute.replace('_', ' ')}"
        raise MissingScoresError(scores.notes.get(attribute, default))
    return values


def row_mean(scores: Scores, set_name: str, attribute: str) -> float:
    """Return the mean of :func:`row_values`."""
    return float(np.mean(row_values(scores, set_name, attribute)))


def probability(scores: Scores, set_name: str) -> float:
    """Return the set's probability. On sets of general knowledge, it is normalised over right and wrong answers."""
    right = answer_losses(scores, set_name)
    if set_name not in GENERAL_SETS:
        return formulas.probability(right)
    return formulas.normalised_probability(right, _wrong_losses(scores, set_name))


def truth_ratio(scores: Scores, set_name: str) -> float:
    """Return the set's truth ratio: the utility form on utility sets, the forget form on all other sets."""
    ratios = log_ratios(scores, set_name)
    return formulas.utility_truth_ratio(ratios) if set_name in UTILITY_SETS else formulas.forget_truth_ratio(ratios)


def right_losses(scores: Scores, set_name: str) -> FloatArray:
    """Return the mean loss of each row's right answer in the truth ratio, in nats per token, shape (rows,).

    On forget and retain rows, the paraphrased answer is the right answer. On all other sets, the answer itself stands
    in for a missing paraphrase.
    """
    right: list[float] = []
    for number, row in enumerate(rows_of(scores, set_name), start=1):
        needs_paraphrase = set_name in (FORGET, RETAIN)
        loss = row.paraphrased if row.paraphrased is not None or needs_paraphrase else row.answer
        if loss is None:
            raise MissingScoresError(f"row {number} of the set '{set_name}' has no paraphrased answer")
        right.append(loss.mean)
    return finite(scores, set_name, right)


def log_ratios(scores: Scores, set_name: str) -> FloatArray:
    """Return log R = log(P(wrong) / P(right)) of every row, shape (rows,)."""
    right = right_losses(scores, set_name)
    return formulas.log_truth_ratios(right, _wrong_losses(scores, set_name), scores.truth_ratio)


def _wrong_losses(scores: Scores, set_name: str) -> list[FloatArray]:
    rows = rows_of(scores, set_name)
    for number, row in enumerate(rows, start=1):
        if not row.perturbed:
            raise MissingScoresError(f"row {number} of the set '{set_name}' has no perturbed answers")
    return [finite(scores, set_name, [loss.mean for loss in row.perturbed]) for row in rows]
