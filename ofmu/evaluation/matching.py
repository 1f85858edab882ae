"""A reference is only worth comparing with where it covers the same rows under the same definition."""

from __future__ import annotations

import math

from ofmu.data.rows import UnlearnData
from ofmu.errors import ReferenceMismatchError
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores, row_hash
from ofmu.evaluation.sets import FORGET, TruthRatio


def require_match(scores: Scores, reference: Scores) -> None:
    """Check that ``reference`` covers the forget rows of ``scores``, in order, under one truth-ratio definition.

    Raises:
        ReferenceMismatchError: one sentence that names both sides and the first difference.
    """
    ours, theirs = scores.sets.get(FORGET, ()), reference.sets.get(FORGET, ())
    sides = f"The reference '{reference.model}' cannot be compared with the model '{scores.model}'"
    if len(ours) != len(theirs):
        raise ReferenceMismatchError(
            f"{sides}: it covers {len(theirs)} forget rows and the model {len(ours)}; "
            "give a reference that was scored on the same forget set"
        )
    if scores.truth_ratio != reference.truth_ratio:
        raise ReferenceMismatchError(
            f"{sides}: its truth ratio is {reference.truth_ratio} and the model's {scores.truth_ratio}; "
            "score both under one evaluation.truth_ratio"
        )
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True), start=1):
        if not _same_row(mine, other):
            raise ReferenceMismatchError(
                f"{sides}: forget row {number} is '{_shorten(other.question)}' there and "
                f"'{_shorten(mine.question)}' here{_where(mine, other)}; "
                "give a reference that was scored on the same forget set"
            )


def unscored_copy(model: str, data: UnlearnData, truth_ratio: TruthRatio) -> Scores:
    """Return scores whose losses are all NaN, to check a reference against before a model is scored."""
    unknown = AnswerLoss(math.nan, 1)
    rows = data.evaluation[FORGET].rows if FORGET in data.evaluation else ()
    outline = tuple(
        RowScores(
            question=row.question,
            ground_truth=row.answer,
            row_hash=row_hash(row),
            answer=unknown,
            perturbed=(unknown,) * len(row.perturbed_answers),
        )
        for row in rows
    )
    return Scores(model=model, truth_ratio=truth_ratio, sets={FORGET: outline}, data_hash=data.content_hash)


def _same_row(mine: RowScores, other: RowScores) -> bool:
    if mine.row_hash is not None and other.row_hash is not None:
        return mine.row_hash == other.row_hash
    texts = _plain(mine.question) == _plain(other.question) and _plain(mine.ground_truth) == _plain(other.ground_truth)
    return texts and len(mine.perturbed) == len(other.perturbed)


def _where(mine: RowScores, other: RowScores) -> str:
    return " with other answers" if _plain(mine.question) == _plain(other.question) else ""


def _plain(text: str) -> str:
    """Collapse whitespace, which decoding a logged prompt may change."""
    return " ".join(text.split())


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
