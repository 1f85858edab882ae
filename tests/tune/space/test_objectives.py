"""Objectives of searches on images."""

from __future__ import annotations

from typing import Any

import pytest

from ofmu.config.files import validate
from ofmu.errors import ConfigError
from tune.config import SearchConfig
from tune.space.objectives import WORST, lost_utility


def images(**changes: Any) -> SearchConfig:
    return validate(SearchConfig, {"data": {"source": "cifar10"}} | changes)


def test_images_are_searched_for_the_gap_to_retraining_and_for_test_accuracy() -> None:
    assert images().objectives == {"unlearning_accuracy_gap": "min", "testing_accuracy": "max"}
    without = images(reference={"source": "none"})
    assert without.objectives == {"unlearning_accuracy": "max", "testing_accuracy": "max"}


def test_every_vision_metric_is_an_objective_with_a_bound() -> None:
    from ofmu.vision.metrics import FIELD_METRICS

    for name in FIELD_METRICS:
        assert WORST[name] == 0.0
        assert WORST[f"{name}_gap"] == WORST["average_gap"] == 100.0


def test_a_gap_without_a_reference_is_refused() -> None:
    search = {"objectives": {"average_gap": "min", "testing_accuracy": "max"}}
    with pytest.raises(ConfigError, match="'average_gap' compares with a retrained model"):
        images(reference={"source": "none"}, search=search)
    assert images(search=search).objectives == search["objectives"]


@pytest.mark.parametrize("method", ["salun", "influence", "boundaryexpand", "boundaryshrink", "l1sparse", "finetune"])
def test_every_vision_method_brings_a_space_that_can_be_searched(method: str) -> None:
    assert images(method={"name": method}).search.space


@pytest.mark.parametrize(
    ("utility", "target", "lost"),
    [
        (0.0, 0.9, True),
        (0.0, None, True),
        (0.04, 0.9, True),
        (0.046, 0.9, False),
        (1e-9, None, False),
        (0.0, 0.0, True),
    ],
)
def test_a_twentieth_of_the_targets_utility_is_none(utility: float, target: float | None, lost: bool) -> None:
    values = {"ks_statistic": 0.0, "model_utility": utility, "average_gap": 1.0, "custom:metric": 0.0}
    known = {"model_utility": target, "average_gap": 90.0}
    assert lost_utility(values, list(values), known) == (["model_utility"] if lost else [])
    # The worst gap is 100, so a small one is no loss.
    assert lost_utility(values | {"average_gap": 100.0}, ["ks_statistic", "average_gap"], known) == ["average_gap"]
