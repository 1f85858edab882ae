"""Boundary shrink, compared with an attack on one image at a time."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from vision_case import Case, labels_of, plain_logits

CPU = torch.device("cpu")


def attacked_label(model, row, radius: float) -> int:
    pixels = (row.pixels.double() / 255)[None].requires_grad_()
    loss = cross_entropy(model(pixel_values=(pixels - 0.5) / 0.25).logits, torch.tensor([row.label]))
    loss.backward()
    moved = pixels.detach() + radius * torch.sign(pixels.grad)
    moved = torch.minimum(torch.maximum(moved, torch.tensor(0.0)), torch.tensor(1.0))
    return int(model(pixel_values=(moved - 0.5) / 0.25).logits.argmax())


def test_the_labels_are_the_targets_classes_across_the_nearest_boundary() -> None:
    case = Case("boundaryshrink", radius=0.1, batch_size=3)
    rows = case.task.forget_rows
    labels = case.method.forget_loss(rows).labels(rows, CPU).tolist()
    assert labels == [attacked_label(case.model, row, 0.1) for row in rows]
    with torch.no_grad():
        assert labels != plain_logits(case.model, rows).argmax(1).tolist()


def test_the_direction_is_the_gradient_with_those_labels() -> None:
    case = Case("boundaryshrink", forget_weight=2.0, retain_weight=0.5)
    forget, retain = case.task.forget_rows, case.task.retain_rows
    labels = torch.tensor([attacked_label(case.model, row, 0.1) for row in forget])

    def loss(model):
        wrong = cross_entropy(plain_logits(model, forget), labels)
        return 2 * wrong + 0.5 * cross_entropy(plain_logits(model, retain), labels_of(retain))

    assert torch.allclose(case.flat(case.method.direction().vector), case.gradient(loss), rtol=1e-9, atol=1e-12)


def test_the_published_method_uses_no_retain_row() -> None:
    case = Case("boundaryshrink")
    before = case.engine.cost_tracker.gradient_evaluations
    direction = case.method.direction()
    assert direction.retain_loss is None
    assert case.engine.cost_tracker.gradient_evaluations == before + 1


def test_each_batch_of_the_attack_counts_as_a_gradient_and_a_forward_evaluation() -> None:
    # 8 images in batches of 3.
    costs = Case("boundaryshrink", batch_size=3).engine.cost_tracker
    assert (costs.gradient_evaluations, costs.forward_evaluations, costs.tokens) == (3, 3, 2 * 8)
