"""Hard in-scope questions: other wordings of the facts in the forget rows.

A method that unlearns only the trained wording leaves these questions answerable. Each kind of question forms an
evaluation set of its own, which is scored with the formulas of the forget set.
"""

from __future__ import annotations

from ofmu.data.rows import Row, UnlearnData
from ofmu.evaluation.sets import FORGET, IN_SCOPE_KINDS, IN_SCOPE_PREFIX


def in_scope_sets(data: UnlearnData) -> dict[str, tuple[Row, ...]]:
    """Return the rows of each hard set by the set's name in the scores. Empty sets are left out.

    A paraphrased question and a multi-hop question keep the right and wrong answers of the forget row. A translated
    question has translated answers.
    """
    forget = data.evaluation[FORGET].rows if FORGET in data.evaluation else ()
    rows = {
        "paraphrase": [_with_question(row, row.paraphrased_question) for row in forget if row.paraphrased_question],
        "multi_hop": [_with_question(row, row.multi_hop_question) for row in forget if row.multi_hop_question],
        "translation": [_translated(row) for row in forget if row.translated_question],
    }
    return {f"{IN_SCOPE_PREFIX}{kind}": tuple(rows[kind]) for kind in IN_SCOPE_KINDS if rows[kind]}


def _with_question(row: Row, question: str | None) -> Row:
    return Row(
        question=question or "",
        answer=row.answer,
        paraphrased_answer=row.paraphrased_answer,
        perturbed_answers=row.perturbed_answers,
    )


def _translated(row: Row) -> Row:
    return Row(
        question=row.translated_question or "",
        answer=row.translated_answer or "",
        perturbed_answers=row.translated_perturbed_answers,
    )
