"""Vision metrics compared with closed forms, and the reasons of missing metrics."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ofmu.errors import DataError, ReferenceMismatchError
from ofmu.evaluation.metrics.summary import Metrics
from ofmu.vision.metrics import FIELD_METRICS, metrics_of_images, mia_efficacy
from ofmu.vision.scores import ImageScores, SetScores


def part(labels: list[int], predicted: list[int], confidence: list[float]) -> SetScores:
    return SetScores(tuple(labels), tuple(predicted), tuple(confidence))


def scores(**changes: SetScores) -> ImageScores:
    sets = {
        "forget": part([0, 0, 0, 0], [0, 1, 1, 1], [0.9, 0.2, 0.1, 0.1]),
        "retain": part([1, 1, 2, 2], [1, 1, 2, 1], [0.9, 0.9, 0.9, 0.9]),
        "test": part([1, 2], [1, 1], [0.1, 0.1]),
    }
    return ImageScores(model="m", data_hash="h", seed=0, sets=sets | changes)


def check_reasons(result: Metrics) -> None:
    assert {name for name, value in result.values.items() if value is None} == set(result.reasons)
    assert all(reason for reason in result.reasons.values())


def test_accuracies_are_percentages_of_the_sets() -> None:
    result = metrics_of_images(scores())
    assert result.values["unlearning_accuracy"] == 75.0
    assert result.values["remaining_accuracy"] == 75.0
    assert result.values["testing_accuracy"] == 50.0
    assert result.values["mia_efficacy"] == 75.0
    check_reasons(result)
    assert result.reasons["average_gap"] == "there is no retrained reference"


def test_the_average_gap_is_the_mean_of_four_absolute_differences() -> None:
    reference = scores(forget=part([0, 0, 0, 0], [1, 1, 1, 1], [0.1] * 4), test=part([1, 2], [1, 2], [0.1, 0.1]))
    result = metrics_of_images(scores(), reference)
    gaps = [result.values[f"{name}_gap"] for name in FIELD_METRICS]
    assert gaps == [25.0, 0.0, 50.0, 25.0]
    assert result.values["average_gap"] == 25.0
    assert result.reasons == {}
    assert metrics_of_images(reference, reference).values["average_gap"] == 0.0


@pytest.mark.parametrize(("forget", "efficacy"), [([0.95, 0.66], 0.0), ([0.34, 0.05], 100.0), ([0.4, 0.6], 50.0)])
def test_the_classifier_of_two_symmetric_clusters_decides_at_their_middle(forget: list[float], efficacy: float) -> None:
    members, non_members = np.array([0.8, 0.9, 1.0, 0.9]), np.array([0.2, 0.1, 0.0, 0.1])
    assert mia_efficacy(members, non_members, np.array(forget), seed=0) == efficacy


def test_the_classifier_is_trained_on_equally_many_members_and_non_members() -> None:
    """A tenth of the 1,000 members look like non-members. With all of them, every row would be called a member."""
    members = np.tile([0.9] * 9 + [0.1], 100)
    non_members = np.full(50, 0.1)
    assert mia_efficacy(members, non_members, np.array([0.1]), seed=0) == 100.0
    assert mia_efficacy(members, non_members, np.array([0.9]), seed=0) == 0.0


def test_outputs_that_are_not_finite_give_no_metric_but_a_reason() -> None:
    non_finite = scores(forget=part([0], [0], [math.nan]))
    for result in (metrics_of_images(non_finite, scores()), metrics_of_images(scores(), non_finite)):
        check_reasons(result)
        assert result.values["average_gap"] is None
        assert "forget images are not finite" in result.reasons["average_gap"]
    assert metrics_of_images(non_finite).values["remaining_accuracy"] is None


def test_a_reference_of_other_images_is_an_error() -> None:
    with pytest.raises(ReferenceMismatchError, match="other images"):
        metrics_of_images(scores(), replace(scores(), data_hash="other"))


def test_scores_are_stored_with_nan_as_null(tmp_path) -> None:
    non_finite = scores(forget=part([0], [0], [math.nan]))
    non_finite.save(tmp_path / "scores.json")
    loaded = ImageScores.load(tmp_path / "scores.json")
    assert math.isnan(loaded.sets["forget"].confidence[0])
    assert loaded.sets["retain"] == non_finite.sets["retain"]
    (tmp_path / "other.json").write_text('{"format": "ofmu-scores/2"}')
    with pytest.raises(DataError, match="no scores of the format"):
        ImageScores.load(tmp_path / "other.json")
    text = (tmp_path / "scores.json").read_text()
    (tmp_path / "short.json").write_text(
        text.replace('"predicted": [\n        0\n', '"predicted": [\n        0, 1\n', 1)
    )
    with pytest.raises(DataError, match="malformed"):
        ImageScores.load(tmp_path / "short.json")
