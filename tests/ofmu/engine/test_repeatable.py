"""A model that is not the same function at every pass is refused before the first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ofmu.engine.cost import CostTracker
from ofmu.engine.repeatable import check_repeatable
from ofmu.engine.torch import TorchEngine
from ofmu.errors import ModelError
from ofmu.testing import tiny_language_task, tiny_llama


def add_noise(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output + 0.01 * torch.randn_like(output)


def test_a_deterministic_model_passes_without_cost_or_change() -> None:
    engine, task = TorchEngine(tiny_llama(), CostTracker()), tiny_language_task()
    before = engine.space.snapshot()
    check_repeatable(engine, task.loss, task.forget_rows)
    assert engine.cost_tracker.gradient_evaluations == engine.cost_tracker.tokens == 0
    assert all(torch.equal(x, y) for x, y in zip(before, engine.space.masters(), strict=True))


def test_a_random_model_is_refused_with_the_size_of_the_difference() -> None:
    model, task = tiny_llama(), tiny_language_task()
    model.model.layers[0].mlp.register_forward_hook(add_noise)
    with pytest.raises(ModelError, match=r"Two gradients of the same rows differ by \d+%"):
        check_repeatable(TorchEngine(model, CostTracker()), task.loss, task.forget_rows)


def test_a_model_that_changes_a_buffer_is_refused_unless_the_buffer_is_never_saved() -> None:
    def count(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        module.uses.add_(1)  # type: ignore[operator, union-attr]

    for persistent in (False, True):
        model, task = tiny_llama(), tiny_language_task()
        router = model.model.layers[0].mlp
        router.register_buffer("uses", torch.zeros(()), persistent=persistent)
        router.register_forward_hook(count)
        engine = TorchEngine(model, CostTracker())
        if not persistent:
            check_repeatable(engine, task.loss, task.forget_rows)
            continue
        with pytest.raises(ModelError, match=r"changes its buffer 'model\.layers\.0\.mlp\.uses' while it trains"):
            check_repeatable(engine, task.loss, task.forget_rows)
