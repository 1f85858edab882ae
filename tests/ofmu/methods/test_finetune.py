"""Fine-tuning descends the retain loss and never sees a forget row."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from ofmu.methods.registry import method_class
from vision_case import Case, labels_of, plain_logits


def test_its_direction_is_the_retain_gradient() -> None:
    case = Case("finetune", retain_weight=2.0)
    rows = case.task.retain_rows
    wanted = case.gradient(lambda model: 2 * cross_entropy(plain_logits(model, rows), labels_of(rows)))
    found = case.method.direction()
    assert torch.allclose(case.flat(found.vector), wanted, rtol=1e-9, atol=1e-12)
    assert found.forget_loss is None
    assert case.engine.cost_tracker.gradient_evaluations == 1


def test_a_weight_of_what_it_never_sees_is_named() -> None:
    (note,) = method_class("finetune").Config(forget_weight=1.0).ineffective()
    assert "forget_weight" in note
