"""Influence unlearning, compared with a dense inverse and with WoodFisher's recursion."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from ofmu.methods.influence import inverse_fisher_product
from vision_case import Case, labels_of, plain_logits


@pytest.mark.slow
def test_the_step_is_the_inverse_fisher_matrix_times_the_difference_of_gradients() -> None:
    case = Case("influence", strength=0.7, damping=0.2, fisher_rows=1000, batch_size=3)
    forget, retain = case.task.forget_rows, case.task.retain_rows

    def mean_loss(rows):
        return lambda model: cross_entropy(plain_logits(model, rows), labels_of(rows))

    difference = 8 / 18 * (case.gradient(mean_loss(forget)) - case.gradient(mean_loss(retain)))
    row_gradients = torch.stack([case.gradient(mean_loss([row])) for row in retain])
    fisher = 0.2 * torch.eye(len(difference), dtype=torch.float64) + row_gradients.T @ row_gradients / len(retain)
    expected = 0.7 * torch.linalg.solve(fisher, difference)
    (record,) = case.method.rounds()
    moved = case.flat() - case.start()
    assert torch.allclose(moved, expected, rtol=1e-7, atol=1e-12)
    assert 0.7 * record.direction_norm == pytest.approx(torch.linalg.vector_norm(expected).item(), rel=1e-7)
    assert list(case.method.rounds()) == []


@pytest.mark.slow
def test_the_product_equals_woodfishers_recursion() -> None:
    """F_k⁻¹ = F_{k−1}⁻¹ − F_{k−1}⁻¹ g gᵀ F_{k−1}⁻¹ / (N + gᵀ F_{k−1}⁻¹ g), F_0⁻¹ = I/λ (arXiv 2004.14340)."""
    case = Case("influence")
    length = len(case.engine.space.masters()[0])
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(length, generator=generator, dtype=torch.float64) for _ in range(5)]
    vector = torch.randn(length, generator=generator, dtype=torch.float64)
    inverse = torch.eye(length, dtype=torch.float64) / 0.3
    for gradient in gradients:
        product = inverse @ gradient
        inverse -= torch.outer(product, product) / (5 + gradient @ product)
    (result,) = inverse_fisher_product(case.engine.space, [[g] for g in gradients], 0.3, [vector])
    assert torch.allclose(result, inverse @ vector, rtol=1e-9)
