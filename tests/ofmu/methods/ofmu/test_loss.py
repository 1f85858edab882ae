"""The clamped forget loss, compared with its formula, its limits, and SimNPO, which it equals up to a constant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.losses import AnswerLoss
from ofmu.methods.ofmu.loss import ClampedLoss, unforgotten_weight
from ofmu.methods.simnpo import SimNpoLoss
from ofmu.testing import tiny_llama, tiny_rows

CPU = torch.device("cpu")


class IndexedLoss:
    """A loss whose rows are indices of a tensor of losses."""

    def __init__(self, losses: Tensor) -> None:
        self.losses = losses

    def size(self, row: int) -> int:
        return 3

    def tokens(self, row: int) -> int:
        return 7

    def total(self, module: Any, rows: Sequence[int], device: torch.device) -> Tensor:
        return 3 * self.row_means(module, rows, device).sum()

    def row_means(self, module: Callable[..., Any], rows: Sequence[int], device: torch.device) -> Tensor:
        return self.losses[list(rows)]


def clamped_total(losses: Tensor, margin: float, sharpness: float) -> Tensor:
    return ClampedLoss(IndexedLoss(losses), margin, sharpness).total(None, range(len(losses)), CPU)


def test_the_clamp_is_the_loss_below_the_margin_and_the_margin_above() -> None:
    losses = torch.tensor([0.01, 2.0, 40.0], dtype=torch.float64)
    total = clamped_total(losses, margin=10.0, sharpness=20.0)
    assert float(total) == pytest.approx(0.01 + 2.0 + 10.0, abs=1e-12)


@pytest.mark.slow
@given(
    losses=st.lists(st.floats(0, 30), min_size=1, max_size=6),
    margin=st.floats(0.1, 10),
    sharpness=st.floats(0.2, 10),
)
def test_the_gradient_of_a_row_is_the_sigmoid_of_its_distance_from_the_margin(losses, margin, sharpness) -> None:
    x = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    total = clamped_total(x, margin, sharpness)
    expected = sum(margin - math.log1p(math.exp(sharpness * (margin - value))) / sharpness for value in losses)
    assert float(total.detach()) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    (gradients,) = torch.autograd.grad(total, x)
    for gradient, value in zip(gradients.tolist(), losses, strict=True):
        odds = math.exp(sharpness * (margin - value))
        assert gradient == pytest.approx(odds / (1 + odds), rel=1e-9, abs=1e-12)


@given(value=st.floats(0, 12), margin=st.floats(0.1, 8), sharpness=st.floats(0.2, 8))
def test_for_equal_rows_the_unforgotten_weight_is_the_gradient_of_a_row(value, margin, sharpness) -> None:
    x = torch.full((3,), value, dtype=torch.float64, requires_grad=True)
    total = clamped_total(x, margin, sharpness)
    (gradients,) = torch.autograd.grad(total, x)
    assert unforgotten_weight(float(total.detach()) / 3, margin, sharpness) == pytest.approx(
        float(gradients[0]), abs=1e-9
    )


def test_the_unforgotten_weight_is_one_minus_a_geometric_mean_over_rows() -> None:
    losses = torch.tensor([0.5, 3.0, 4.0], dtype=torch.float64)
    forgotten = [1 / (1 + math.exp(2 * (2.5 - value))) for value in losses.tolist()]
    expected = 1 - math.prod(forgotten) ** (1 / 3)
    assert unforgotten_weight(float(clamped_total(losses, 2.5, 2.0)) / 3, 2.5, 2.0) == pytest.approx(
        expected, rel=1e-12
    )
    assert unforgotten_weight(2.5 + 1e-16, 2.5, 2.0) == 0.0


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_on_answers_the_gradient_is_half_of_simnpos(micro_batch_size: int | None) -> None:
    """SimNPO's loss is −(2/b) log σ(b(ℓ − δ)). In both losses, every row has the same weight."""
    model, rows = tiny_llama().double(), tiny_rows(5, 3)
    loss = ClampedLoss(AnswerLoss(0), margin=4.0, sharpness=1.5)
    value, ascent = TorchEngine(model, CostTracker(), micro_batch_size).gradient(loss, rows)
    other, descent = TorchEngine(model, CostTracker()).gradient(SimNpoLoss(1.5, 4.0, 0), rows)
    assert value == pytest.approx(4.0 - other / 2, rel=1e-12)
    for clamped, simnpo in zip(ascent, descent, strict=True):
        torch.testing.assert_close(clamped, -simnpo / 2, rtol=1e-9, atol=1e-12)
