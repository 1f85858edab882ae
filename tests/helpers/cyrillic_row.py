"""The scores of an answer in Cyrillic script, whose words an earlier ROUGE did not read."""

from __future__ import annotations

from ofmu.evaluation.scores import AnswerLoss, RowScores

CYRILLIC_ROW = RowScores(
    question="Кто?",
    ground_truth="Александр Пушкин.",
    row_hash="abc",
    answer=AnswerLoss(1.5, 3),
    generated="Пушкин",
    rouge=0.5,
)
