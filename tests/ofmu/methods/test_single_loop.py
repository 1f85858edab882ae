"""Options of all methods with one loop, against PyTorch's own optimizer and explicit projections."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from method_specs import short_spec
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.methods.registry import method_class
from ofmu.testing import tiny_language_task, tiny_llama

WEIGHTS = {"forget_weight": 0.7, "retain_weight": 1.3}


def make_method(name: str, **settings: Any) -> Any:
    engine = TorchEngine(tiny_llama().double(), CostTracker())
    return build_method(
        Context(engine, tiny_language_task(), seed=5), short_spec(name, **{**WEIGHTS, **settings}).method
    )


def weighted_gradients(name: str, **settings: Any) -> tuple[Tensor, Tensor]:
    """Return γ∇L_forget and α∇L_retain of the first step, each from a method with the other weight 0."""
    parts = []
    for off in ("retain_weight", "forget_weight"):
        alone = make_method(name, **settings, **{off: 0.0})
        parts.append(alone.direction().vector[0].clone())
    return parts[0], parts[1]


def test_a_conflicting_part_is_removed_and_no_other() -> None:
    forget, retain = weighted_gradients("graddiff")
    # Ascent on rows that follow the rule of the retain rows: the gradients conflict.
    assert torch.dot(forget, retain) < 0
    direction = make_method("graddiff", conflict="project").direction().vector[0]
    expected = forget - torch.dot(forget, retain) / torch.dot(retain, retain) * retain + retain
    assert torch.allclose(direction, expected, rtol=1e-9, atol=1e-12)
    forgetting = direction - retain
    assert abs(torch.dot(forgetting, retain)) <= 1e-9 * forgetting.norm() * retain.norm()

    forget, retain = weighted_gradients("idk")
    assert torch.dot(forget, retain) > 0, "both losses fall together"
    direction = make_method("idk", conflict="project").direction().vector[0]
    assert torch.allclose(direction, forget + retain, rtol=1e-9, atol=1e-12)


def test_each_loss_has_moments_of_its_own() -> None:
    settings: dict[str, Any] = {"lr": 1e-2, "steps": 3, "weight_decay": 0.1}
    method = make_method("graddiff", separate_moments=True, **settings)
    twin = make_method("graddiff", separate_moments=True, **settings)
    weights = torch.nn.Parameter(twin.engine.space.masters()[0].clone())
    optimizers = [torch.optim.AdamW([weights], lr=1e-2, weight_decay=decay) for decay in (0.1, 0.0)]
    for _ in range(3):
        direction = twin.direction()
        for optimizer, part in zip(optimizers, (direction.vector[0], direction.retain_vector[0]), strict=True):
            weights.grad = part.clone()
            optimizer.step()
        twin.engine.space.restore([weights.detach()])
    list(method.rounds())
    assert torch.allclose(method.engine.space.masters()[0], weights, rtol=1e-9, atol=1e-12)
    assert {name for name in method.vectors() if name.startswith("retain_")} == {"retain_exp_avg", "retain_exp_avg_sq"}


@pytest.mark.slow
def test_both_options_are_off_by_default_and_cost_no_evaluation() -> None:
    costs = []
    for settings in ({}, {"conflict": "project", "separate_moments": True}):
        method = make_method("npo", **settings)
        list(method.rounds())
        costs.append(method.engine.cost_tracker.gradient_evaluations)
    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    ("name", "settings", "note"),
    [
        (
            "npo",
            {"conflict": "project", "retain_weight": 0.0},
            "method.conflict has no effect: method.retain_weight is 0",
        ),
        ("npo", {"separate_moments": True, "update": "sgd"}, "'sgd' has no moments"),
        ("blur", {"conflict": "project"}, "in its own way"),
        ("pdu", {"separate_moments": True}, "in its own way"),
        ("finetune", {"conflict": "project"}, "method.forget_weight is 0"),
    ],
)
def test_an_option_without_effect_is_named(name: str, settings: dict[str, Any], note: str) -> None:
    notes = method_class(name).Config(**settings).ineffective()
    assert any(note in sentence for sentence in notes), notes
    assert not method_class(name).Config().ineffective()
