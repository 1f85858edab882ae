"""ℓ1-sparse: the retain gradient plus a sign vector whose weight falls to zero over the steps."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from vision_case import Case, labels_of, plain_logits


def test_the_direction_is_the_gradient_of_the_penalised_loss() -> None:
    case = Case("l1sparse", sparsity_weight=0.3, retain_weight=2.0, steps=4)
    rows = case.task.retain_rows

    def loss(model):
        norm = sum(parameter.abs().sum() for parameter in model.parameters())
        return 2 * cross_entropy(plain_logits(model, rows), labels_of(rows)) + 0.3 * norm

    assert torch.allclose(case.flat(case.method.direction().vector), case.gradient(loss), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_the_penalty_falls_linearly_over_the_steps(taken: int) -> None:
    # The learning rate is so small that the weights, and the rest of the direction, do not change.
    constant = {"steps": 4, "round_steps": 1, "update": "sgd", "lr": 1e-30}
    case, without = Case("l1sparse", sparsity_weight=0.3, **constant), Case("finetune", **constant)
    for each in (case, without):
        rounds = each.method.rounds()
        for _ in range(taken):
            next(rounds)
    penalty = case.flat(case.method.direction().vector) - without.flat(without.method.direction().vector)
    # A weight that starts at 0 has a sign of its own after the first step.
    nonzero = case.start() != 0
    assert torch.allclose(penalty[nonzero], 0.3 * (1 - taken / 4) * case.start()[nonzero].sign(), atol=1e-12)


def test_the_penalty_acts_on_the_weights_inside_the_mask_alone() -> None:
    masked, plain = (Case("l1sparse", sparsity_weight=0.3, saliency_fraction=share) for share in (0.4, 1.0))
    found, whole = (case.flat(case.method.direction().vector) for case in (masked, plain))
    mask = masked.engine.space._mask[0]  # type: ignore[attr-defined]
    assert torch.equal(found, whole * mask)
