"""Per-row scores as arrays, or the reason why there are none: what every summary of scores starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ofmu.evaluation.metrics import formulas as formulas
from ofmu.evaluation.scores import RowScores, Scores
from ofmu.evaluation.sets import FORGET, GENERAL_SETS, RETAIN, UTILITY_SETS

Computations = Mapping[str, Callable[[], float]]
"""Metrics by name, each computed when called; it may raise MissingScoresError or NonFiniteError."""


class MissingScoresError(Exception):
    """The data does not hold what a metric needs."""


class NonFiniteError(Exception):
    """The data is there, but the model gave NaN or infinity on it."""


def rows_of(scores: Scores, name: str) -> tuple[RowScores, ...]:
    """Return a set's rows, at least one."""
    rows = scores.sets.get(name, ())
    if not rows:
        raise MissingScoresError(f"the data has no evaluation set '{name}'")
    return rows


def finite(scores: Scores, name: str, losses: Sequence[float]) -> formulas.Floats:
    """Return losses on the set ``name`` as an array without NaN or infinity."""
    array = np.asarray(losses, dtype=np.float64)
    if not np.isfinite(array).all():
        raise NonFiniteError(f"'{scores.model}' gives a non-finite loss on the set '{name}'")
    return array


def answer_losses(scores: Scores, name: str) -> formulas.Floats:
    """Return the mean loss per token of each row's answer."""
    return finite(scores, name, [row.answer.mean for row in rows_of(scores, name)])


def row_values(scores: Scores, name: str, attribute: str) -> list[float]:
    """Return one attribute of every row of a set; the scores' notes may say why it is missing."""
    values = [getattr(row, attribute) for row in rows_of(scores, name)]
    if None in values:
        default = f"row {values.index(None) + 1} of the set '{name}' has no {attribute.replace('_', ' ')}"
        raise MissingScoresError(scores.notes.get(attribute, default))
    return values


def row_mean(scores: Scores, name: str, attribute: str) -> float:
    """Return the mean of :func:`row_values`."""
    return float(np.mean(row_values(scores, name, attribute)))


def probability(scores: Scores, name: str) -> float:
    """Return the set's probability, normalised over the offered answers on the sets of general knowledge."""
    right = answer_losses(scores, name)
    if name not in GENERAL_SETS:
        return formulas.probability(right)
    return formulas.normalised_probability(right, _wrong(scores, name))


def truth_ratio(scores: Scores, name: str) -> float:
    """Return the set's truth ratio: high is good on utility sets, 1 is undecided on forget and in-scope sets."""
    ratios = log_ratios(scores, name)
    return formulas.utility_truth_ratio(ratios) if name in UTILITY_SETS else formulas.forget_truth_ratio(ratios)


def log_ratios(scores: Scores, name: str) -> formulas.Floats:
    """Return log(wrong / right) of every row; on forget and retain rows the paraphrase is the right answer.

    On the other sets it is the answer itself, where there is no paraphrase.
    """
    right: list[float] = []
    for number, row in enumerate(rows_of(scores, name), start=1):
        needs_paraphrase = name in (FORGET, RETAIN)
        loss = row.paraphrased if row.paraphrased is not None or needs_paraphrase else row.answer
        if loss is None:
            raise MissingScoresError(f"row {number} of the set '{name}' has no paraphrased answer")
        right.append(loss.mean)
    wrong = _wrong(scores, name)
    return formulas.log_truth_ratios(finite(scores, name, right), wrong, scores.truth_ratio)


def _wrong(scores: Scores, name: str) -> list[formulas.Floats]:
    rows = rows_of(scores, name)
    for number, row in enumerate(rows, start=1):
        if not row.perturbed:
            raise MissingScoresError(f"row {number} of the set '{name}' has no perturbed answers")
    return [finite(scores, name, [loss.mean for loss in row.perturbed]) for row in rows]
