"""Check that a reference covers the same rows as a model's scores, under the same truth-ratio definition."""

from __future__ import annotations

import math

from ofmu.data.rows import UnlearnData
from ofmu.errors import ReferenceMismatchError
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores, compressed_size, row_hash
from ofmu.evaluation.sets import FORGET, TruthRatio


def require_match(scores: Scores, reference: Scores) -> None:
    """Check that ``reference`` covers the forget rows of ``scores``, in order, under one truth-ratio definition.

    Raises:
        ReferenceMismatchError: the two differ. The sentence names both models and the first difference.
    """
    rows, reference_rows = scores.sets.get(FORGET, ()), reference.sets.get(FORGET, ())
    start = f"The reference '{reference.model}' cannot be compared with the model '{scores.model}'"
    if len(rows) != len(reference_rows):
        raise ReferenceMismatchError(
            f"{start}: the reference covers {len(reference_rows)} forget rows and the model {len(rows)}; "
            "give a reference that was scored on the same forget set"
        )
    if scores.truth_ratio != reference.truth_ratio:
        raise ReferenceMismatchError(
            f"{start}: the reference's truth ratio is {reference.truth_ratio} and the model's {scores.truth_ratio}; "
            "score both under one evaluation.truth_ratio"
        )
    for number, (row, reference_row) in enumerate(zip(rows, reference_rows, strict=True), start=1):
        if not same_row(row, reference_row):
            raise ReferenceMismatchError(
                f"{start}: forget row {number} has another {_difference(row, reference_row)} in the reference than in "
                "the model's scores; give a reference that was scored on the same forget set"
            )


def unscored_copy(model: str, data: UnlearnData, truth_ratio: TruthRatio) -> Scores:
    """Return scores of the forget rows whose losses are all NaN.

    :func:`require_match` can check a reference against these scores before the model is scored.
    """
    unknown = AnswerLoss(math.nan, 1)
    rows = data.evaluation[FORGET].rows if FORGET in data.evaluation else ()
    unscored = tuple(
        RowScores(
            question=row.question,
            ground_truth=row.answer,
            row_hash=row_hash(row),
            answer=unknown,
            perturbed=(unknown,) * len(row.perturbed_answers),
        )
        for row in rows
    )
    return Scores(model=model, truth_ratio=truth_ratio, sets={FORGET: unscored}, data_hash=data.content_hash)


def same_row(row: RowScores, other: RowScores) -> bool:
    """Return whether two models were scored on the same row, as far as the scores tell.

    Scores of this package have hashes of their rows. A log of other software has the texts instead, or only the size of
    the compressed answer.
    """
    if row.row_hash is not None and other.row_hash is not None:
        return row.row_hash == other.row_hash
    if not row.ground_truth or not other.ground_truth:
        size = compressed_size(row)
        return size is not None and size == compressed_size(other)
    if not _same_text(row.ground_truth, other.ground_truth) or len(row.perturbed) != len(other.perturbed):
        return False
    # A log may hold the whole prompt, in a chat template that nothing here knows.
    questions = [" ".join(each.question.split()) for each in (row, other)]
    shorter, longer = sorted(questions, key=len)
    return shorter == longer or (bool(shorter) and shorter in longer)


def _difference(row: RowScores, other: RowScores) -> str:
    return "answer" if _same_text(row.question, other.question) else "question"


def _same_text(text: str, other: str) -> bool:
    # The prompts of an official log were decoded from tokens, which may change whitespace.
    return text.split() == other.split()
