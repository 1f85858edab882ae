"""An attack that cannot be made leaves its metrics without a number, with a reason."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from ofmu.errors import DataError
from ofmu.evaluation.config import Attack
from ofmu.evaluation.metrics.registry import REGISTRY
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.language import robustness


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the device has too little memory for the attack"),
        (DataError("There is no such row"), "There is no such row"),
    ],
)
@pytest.mark.parametrize("name", get_args(Attack))
def test_an_attack_that_cannot_be_made_has_a_reason(
    name: Attack, error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    for part in ("relearning", "sampling", "quantization", "few_shot"):
        monkeypatch.setattr(robustness, part, fail)
    nothing: Any = None
    result = robustness.attack(name, nothing, nothing, nothing, UnlearnConfig(), nothing, None)
    assert set(result.metrics) == {info.name for info in REGISTRY.values() if info.attack == name} != set()
    assert set(result.metrics.values()) == {None}
    assert all(said.startswith(reason) for said in result.reasons.values())
