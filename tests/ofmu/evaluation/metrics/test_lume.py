"""LUME's task aggregate, against the official script's steps written out with pandas and statistics."""

from __future__ import annotations

import random
from statistics import harmonic_mean

import pandas as pd
import pytest

from ofmu.evaluation.metrics.summary import metrics_of
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores
from ofmu.evaluation.sets import LUME_PARTS


def rows(seed: int, with_text: bool = True) -> tuple[RowScores, ...]:
    draw = random.Random(seed)
    return tuple(
        RowScores(
            question=f"q{number}",
            ground_truth="Ann Lee ",
            row_hash=str(number),
            answer=AnswerLoss(1.0, 2),
            generated=draw.choice([" ann LEE", "Eve"]) if with_text else None,
            rouge=draw.random() if with_text else None,
            part=LUME_PARTS[number % 6],
        )
        for number in range(120)
    )


def official(sets: dict[str, tuple[RowScores, ...]]) -> float:
    values: list[float] = []
    for split, scored in sets.items():
        frame = pd.DataFrame(
            {
                "task": row.part.split("_")[0] if row.part else "",
                "regurgitation-score": row.rouge if row.part and row.part.endswith("regurgitation") else None,
                "knowledge-score": int(row.ground_truth.strip().lower() == str(row.generated).strip().lower())
                if row.part and row.part.endswith("knowledge")
                else None,
            }
            for row in scored
        )
        columns = ["regurgitation-score", "knowledge-score"]
        means = frame.groupby("task")[columns].mean().to_dict(orient="index")
        found = [float(value) for inner in means.values() for value in inner.values()]
        values += [1 - value for value in found] if split == "forget" else found
    assert len(values) == 12
    return harmonic_mean(values)


def test_the_aggregate_is_the_official_one() -> None:
    sets = {"forget": rows(1), "retain": rows(2)}
    metrics = metrics_of(Scores(model="m", truth_ratio="geometric", sets=sets)).values
    assert metrics["lume_task_aggregate"] == pytest.approx(official(sets), rel=1e-12)
    expected = sum(row.rouge or 0 for row in sets["retain"] if row.part == "task2_regurgitation") / 20
    assert metrics["retain_task2_regurgitation"] == pytest.approx(expected)


def test_without_text_the_aggregate_has_a_reason_and_other_data_have_none() -> None:
    sets = {"forget": rows(1, with_text=False), "retain": rows(2)}
    result = metrics_of(Scores(model="m", truth_ratio="geometric", sets=sets, notes={"rouge": "no text"}))
    assert result.values["lume_task_aggregate"] is None
    assert result.reasons["lume_task_aggregate"] == "no text"
    plain = {"forget": (RowScores(question="q", ground_truth="a", row_hash="h", answer=AnswerLoss(1.0, 2)),)}
    assert "lume_task_aggregate" not in metrics_of(Scores(model="m", truth_ratio="geometric", sets=plain)).values
