"""Influence unlearning against a dense inverse and against WoodFisher's recursion, one gradient at a time."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from ofmu.methods.influence import inverse_fisher_product
from vision_case import Case, labels_of, plain_logits


def test_its_step_is_the_inverse_fisher_times_the_difference_of_gradients() -> None:
    case = Case("influence", strength=0.7, damping=0.2, fisher_rows=1000, batch_size=3)
    forget, retain = case.task.forget_rows, case.task.retain_rows

    def mean_loss(rows):
        return lambda model: cross_entropy(plain_logits(model, rows), labels_of(rows))

    towards = 8 / 18 * (case.gradient(mean_loss(forget)) - case.gradient(mean_loss(retain)))
    own = torch.stack([case.gradient(mean_loss([row])) for row in retain])
    fisher = 0.2 * torch.eye(len(towards), dtype=torch.float64) + own.T @ own / len(retain)
    wanted = 0.7 * torch.linalg.solve(fisher, towards)
    (record,) = case.method.rounds()
    moved = case.flat() - case.start()
    assert torch.allclose(moved, wanted, rtol=1e-7, atol=1e-12)
    assert 0.7 * record.direction_norm == pytest.approx(torch.linalg.vector_norm(wanted).item(), rel=1e-7)
    assert list(case.method.rounds()) == []


def test_the_product_is_that_of_woodfishers_recursion() -> None:
    """F_k⁻¹ = F_{k−1}⁻¹ − F_{k−1}⁻¹ g gᵀ F_{k−1}⁻¹ / (N + gᵀ F_{k−1}⁻¹ g), F_0⁻¹ = I/λ (arXiv 2004.14340)."""
    case = Case("influence")
    length = len(case.engine.space.masters()[0])
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(length, generator=generator, dtype=torch.float64) for _ in range(5)]
    vector = torch.randn(length, generator=generator, dtype=torch.float64)
    inverse = torch.eye(length, dtype=torch.float64) / 0.3
    for gradient in gradients:
        turned = inverse @ gradient
        inverse -= torch.outer(turned, turned) / (5 + gradient @ turned)
    (found,) = inverse_fisher_product(case.engine.space, [[g] for g in gradients], 0.3, [vector])
    assert torch.allclose(found, inverse @ vector, rtol=1e-9)
