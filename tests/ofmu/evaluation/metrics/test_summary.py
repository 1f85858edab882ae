"""The reported metrics, their inputs, and the reasons of missing metrics."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ofmu.evaluation.metrics.summary import Metrics, metrics_of
from ofmu.evaluation.scores import AnswerLoss, RowScores, Scores


def make_row(mean: float = 0.5, **changes: object) -> RowScores:
    row = RowScores(
        question="Who?",
        ground_truth="Ann.",
        row_hash="h",
        answer=AnswerLoss(mean * 3, 3),
        paraphrased=AnswerLoss(2.0, 2),
        perturbed=(AnswerLoss(4.0, 2), AnswerLoss(9.0, 3)),
        generated="Ann.",
        rouge=0.5,
        extraction_strength=0.25,
        exact_memorization=0.75,
    )
    return replace(row, **changes)


def make_scores(**sets: list[RowScores]) -> Scores:
    return Scores(model="m", truth_ratio="geometric", sets={name: tuple(rows) for name, rows in sets.items()})


ALL = {name: [make_row()] for name in ("forget", "retain", "real_authors", "world_facts")}


def assert_missing_metrics_have_reasons(result: Metrics) -> None:
    assert {name for name, value in result.values.items() if value is None} == set(result.reasons)
    assert all(reason for reason in result.reasons.values())


def test_general_sets_normalise_probability_and_prefer_a_paraphrase_for_the_truth_ratio() -> None:
    result = metrics_of(make_scores(**ALL))
    right, wrong = math.exp(-0.5), math.exp(-2) + math.exp(-3)
    assert result.values["forget_probability"] == pytest.approx(right)
    assert result.values["world_facts_probability"] == pytest.approx(right / (right + wrong))
    assert result.values["retain_truth_ratio"] == pytest.approx(1 - math.exp(-2.5 + 1.0))
    assert result.values["forget_truth_ratio"] == pytest.approx(math.exp(-1.5))
    assert result.values["extraction_strength"] == 0.25
    assert result.values["exact_memorization"] == 0.75
    assert set(result.reasons) == {
        "ks_statistic", "forget_quality", "log10_forget_quality", "forget_quality_rows",
        "forget_distinct_2", "forget_distinct_3", "forget_repetition",
    }  # fmt: skip
    assert_missing_metrics_have_reasons(result)


def test_the_answer_replaces_a_missing_paraphrase_only_on_general_sets() -> None:
    no_paraphrase = {name: [make_row(paraphrased=None)] for name in ALL}
    result = metrics_of(make_scores(**no_paraphrase))
    assert result.values["real_authors_truth_ratio"] == pytest.approx(1 - math.exp(-2.5 + 0.5))
    for name in ("forget", "retain"):
        assert result.reasons[f"{name}_truth_ratio"] == f"row 1 of the set '{name}' has no paraphrased answer"
    assert "retain_truth_ratio" not in result.utility_components
    assert len(result.utility_components) == 8


def test_model_utility_is_the_harmonic_mean_of_the_existing_components() -> None:
    rows = [make_row(paraphrased=None, perturbed=())]
    result = metrics_of(make_scores(forget=rows, retain=rows))
    assert result.utility_components == ("retain_rouge", "retain_probability")
    assert result.values["model_utility"] == pytest.approx(2 / (1 / 0.5 + 1 / math.exp(-0.5)))
    assert result.reasons["world_facts_rouge"] == "the data has no evaluation set 'world_facts'"
    assert_missing_metrics_have_reasons(result)


def test_a_zero_component_makes_utility_zero() -> None:
    result = metrics_of(make_scores(**{**ALL, "retain": [make_row(rouge=0.0)]}))
    assert result.values["model_utility"] == 0.0


def test_a_non_finite_loss_makes_utility_missing() -> None:
    result = metrics_of(make_scores(**{**ALL, "retain": [make_row(mean=math.nan)]}))
    assert result.values["retain_probability"] is None
    assert result.values["model_utility"] is None
    assert "retain_probability" in result.reasons["model_utility"]
    assert "non-finite" in result.reasons["retain_probability"]
    assert_missing_metrics_have_reasons(result)


def test_a_non_finite_forget_loss_makes_forget_quality_missing() -> None:
    non_finite = make_scores(**{**ALL, "forget": [make_row(paraphrased=AnswerLoss(math.inf, 2))]})
    result = metrics_of(non_finite, make_scores(**ALL))
    assert result.values["forget_quality"] is None
    assert "non-finite" in result.reasons["ks_statistic"]
    assert result.values["model_utility"] is not None


def test_a_model_against_itself_has_forget_quality_one() -> None:
    scores = make_scores(**ALL)
    result = metrics_of(scores, scores)
    assert result.values["forget_quality"] == 1.0
    assert result.values["ks_statistic"] == 0.0
    assert result.values["forget_quality_rows"] == 1.0


def test_without_a_set_beside_forget_utility_is_missing() -> None:
    result = metrics_of(make_scores(forget=[make_row()]))
    assert result.values["model_utility"] is None
    assert "other than forget" in result.reasons["model_utility"]


def test_notes_of_the_scores_become_reasons() -> None:
    scores = replace(make_scores(forget=[make_row(rouge=None)]), notes={"rouge": "switched off"})
    assert metrics_of(scores).reasons["forget_rouge"] == "switched off"
