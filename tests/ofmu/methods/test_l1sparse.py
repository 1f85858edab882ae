"""ℓ1-sparse: the retain gradient plus a sign vector whose weight falls to zero."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from vision_case import Case, labels_of, plain_logits


def test_its_direction_is_the_gradient_of_the_penalised_loss() -> None:
    case = Case("l1sparse", sparsity_weight=0.3, retain_weight=2.0, steps=4)
    rows = case.task.retain_rows

    def loss(model):
        norm = sum(parameter.abs().sum() for parameter in model.parameters())
        return 2 * cross_entropy(plain_logits(model, rows), labels_of(rows)) + 0.3 * norm

    assert torch.allclose(case.flat(case.method.direction().vector), case.gradient(loss), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_the_penalty_falls_linearly_over_the_steps(taken: int) -> None:
    # with so small a rate the weights, and so the rest of the direction, stay where they are
    still = {"steps": 4, "round_steps": 1, "update": "sgd", "lr": 1e-30}
    case, without = Case("l1sparse", sparsity_weight=0.3, **still), Case("finetune", **still)
    for some in (case, without):
        rounds = some.method.rounds()
        for _ in range(taken):
            next(rounds)
    penalty = case.flat(case.method.direction().vector) - without.flat(without.method.direction().vector)
    # weights that start at exactly 0 have left it by the first step, whichever way
    known = case.start() != 0
    assert torch.allclose(penalty[known], 0.3 * (1 - taken / 4) * case.start()[known].sign(), atol=1e-12)
