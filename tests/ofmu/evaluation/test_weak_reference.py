from __future__ import annotations

from typing import Any

import pytest

from ofmu.evaluation.weak_reference import weak_reference


def test_a_retrained_model_that_knows_little_is_named() -> None:
    sentence = weak_reference({"model_utility": 0.875}, {"model_utility": 0.021})
    assert sentence is not None
    assert sentence.startswith("the retrained model knows little (model_utility 0.021, the target's 0.875)")


def test_a_retrained_model_that_answers_far_worse_than_the_target_is_named() -> None:
    assert "model_utility 0.6, the target's 0.99" in str(
        weak_reference({"model_utility": 0.99}, {"model_utility": 0.6})
    )


@pytest.mark.parametrize(
    ("target", "retrained"),
    [
        ({"model_utility": 0.8}, {"model_utility": 0.61}),
        ({"model_utility": 0.0}, {"model_utility": 0.0}),
        ({"model_utility": None}, {"model_utility": 0.1}),
        ({"model_utility": 0.8}, {"model_utility": None}),
        ({}, {}),
    ],
)
def test_others_are_not(target: dict[str, Any], retrained: dict[str, Any]) -> None:
    assert weak_reference(target, retrained) is None
