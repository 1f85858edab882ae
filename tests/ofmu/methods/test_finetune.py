"""Fine-tuning descends the retain loss and uses no forget row."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from ofmu.methods.registry import method_class
from vision_case import Case, labels_of, plain_logits


def test_the_direction_is_the_retain_gradient() -> None:
    case = Case("finetune", retain_weight=2.0)
    rows = case.task.retain_rows
    expected = case.gradient(lambda model: 2 * cross_entropy(plain_logits(model, rows), labels_of(rows)))
    direction = case.method.direction()
    assert torch.allclose(case.flat(direction.vector), expected, rtol=1e-9, atol=1e-12)
    assert direction.forget_loss is None
    assert case.engine.cost_tracker.gradient_evaluations == 1


def test_a_forget_weight_has_no_effect() -> None:
    (note,) = method_class("finetune").Config(forget_weight=1.0).ineffective()
    assert "forget_weight" in note
