"""Hard in-scope questions: the forget rows' facts, asked for in another way than they were trained on.

A method that only unlearns the trained wording still answers these. They are scored as sets of their own, with the
formulas of the forget set.
"""

from __future__ import annotations

from ofmu.data.rows import Row, UnlearnData
from ofmu.evaluation.sets import FORGET, IN_SCOPE


def in_scope_sets(data: UnlearnData) -> dict[str, tuple[Row, ...]]:
    """Return the rows of each hard set by its name in the scores; a set that no forget row has is left out.

    A paraphrased and a multi-hop question keep the row's right and wrong answers; a translated one has its own.
    """
    forget = data.evaluation[FORGET].rows if FORGET in data.evaluation else ()
    made = {
        "paraphrase": [_asked(row, row.paraphrased_question) for row in forget if row.paraphrased_question],
        "multi_hop": [_asked(row, row.multi_hop_question) for row in forget if row.multi_hop_question],
        "translation": [_translated(row) for row in forget if row.translated_question],
    }
    return {f"in_scope_{name}": tuple(made[name]) for name in IN_SCOPE if made[name]}


def _asked(row: Row, question: str | None) -> Row:
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
