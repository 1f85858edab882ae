"""Products on a share of the rows, against dense Hessians of losses that differ from row to row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from analytic import THETA, TOLERANCE, make_derivatives, paper_config, relative_error
from ofmu.engine.config import EngineConfig
from ofmu.methods.ofmu.product_rows import counted_rows
from ofmu.run_config import UnlearnConfig

ROWS = [1, 2, 3, 4]


class RowLoss:
    """Row r has the loss log cosh(x·w_r) + |x|⁴/r with its own direction w_r."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._directions = torch.randn(5, len(THETA), generator=generator, dtype=torch.float64)

    def size(self, row: int) -> int:
        return 1

    def tokens(self, row: int) -> int:
        return 10 * row

    def of(self, x: Tensor, row: int) -> Tensor:
        return torch.log(torch.cosh(x @ self._directions[row])) + 0.1 * (x**4).sum() / row

    def mean(self, rows: Sequence[int]) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.stack([self.of(x, row) for row in rows]).mean()

    def total(self, module: Callable[..., Any], rows: Sequence[int], device: torch.device) -> Tensor:
        x = module()
        return torch.stack([self.of(x, row) for row in rows]).sum()


FORGET, RETAIN = RowLoss(1), RowLoss(2)


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    result: Tensor = jacobian(loss, x, create_graph=True)
    return result


def phi_gradient(x: Tensor, beta: float, point: Sequence[int], products: Sequence[int]) -> Tensor:
    """Return g_f − β(H_f a + H_r b), where g_f, a and b are of the rows ``point`` and the Hessians of ``products``."""
    f, r = gradient(FORGET.mean(point), x), gradient(RETAIN.mean(point), x)
    s = f @ r / (f.norm() * r.norm())
    a = r / (f.norm() * r.norm()) - s * f / f.norm() ** 2
    b = f / (f.norm() * r.norm()) - s * r / r.norm() ** 2
    h_f, h_r = (hessian(loss.mean(products), x, create_graph=True) for loss in (FORGET, RETAIN))
    return f - beta * (h_f @ a + h_r @ b)


@pytest.mark.parametrize("mode", ["exact", "reverse_over_forward", "central"])
def test_only_the_hessians_are_those_of_the_first_rows(mode: str) -> None:
    config = paper_config(derivative=mode, similarity_weight=0.7, product_share=0.5)
    derivatives, engine = make_derivatives(config, FORGET, RETAIN)
    phi = derivatives.phi_gradient(ROWS, ROWS)
    expected = phi_gradient(THETA, 0.7, ROWS, ROWS[:2]).detach()
    assert relative_error(phi.gradient[0], expected) < TOLERANCE[mode]
    assert relative_error(phi.gradient[0], phi_gradient(THETA, 0.7, ROWS, ROWS).detach()) > 0.01
    whole = make_derivatives(paper_config(derivative=mode, similarity_weight=0.7), FORGET, RETAIN)
    whole[0].phi_gradient(ROWS, ROWS)
    costs, whole_costs = engine.cost_tracker, whole[1].cost_tracker
    assert costs.gradient_evaluations - 2 == (whole_costs.gradient_evaluations - 2) / 2
    # The gradients read 100 tokens of each loss. A product reads 30 instead of 100.
    assert costs.tokens - 200 == (whole_costs.tokens - 200) * 30 / 100


def test_the_difference_of_phi_is_that_of_the_first_rows_phi() -> None:
    config = paper_config(derivative="central", outer_derivative="central", similarity_weight=0.7, product_share=0.5)
    derivatives, engine = make_derivatives(config, FORGET, RETAIN)
    phi = derivatives.phi_gradient(ROWS, ROWS)
    before = engine.cost_tracker.gradient_evaluations
    product = derivatives.penalty_product(phi)[0]
    v = phi_gradient(THETA, 0.7, ROWS, ROWS[:2]).detach()
    curvature = jacobian(lambda x: phi_gradient(x, 0.7, ROWS[:2], ROWS[:2]), THETA)
    assert relative_error(product, curvature @ v) < 1e-4
    assert engine.cost_tracker.gradient_evaluations - before == 12 / 2


@pytest.mark.parametrize(("decorrelation", "outer"), [("none", "exact"), ("none", "central"), ("projection", "exact")])
def test_plain_products_are_of_the_first_rows(decorrelation: str, outer: str) -> None:
    config = paper_config(decorrelation=decorrelation, outer_derivative=outer, product_share=0.25)
    derivatives, _ = make_derivatives(config, FORGET, RETAIN)
    phi = derivatives.phi_gradient(ROWS, ROWS)
    f, r = (gradient(loss.mean(ROWS), THETA).detach() for loss in (FORGET, RETAIN))
    c = float(f @ r / (r @ r)) if decorrelation == "projection" else 0.0
    h_f, h_r = (hessian(loss.mean(ROWS[:1]), THETA) for loss in (FORGET, RETAIN))
    expected = (h_f - c * h_r) @ (f - c * r)
    assert relative_error(derivatives.penalty_product(phi)[0], expected) < TOLERANCE[outer]


@pytest.mark.parametrize(("rows", "share", "count"), [(8, 1.0, 8), (8, 0.5, 4), (8, 0.3, 3), (8, 0.01, 1), (1, 0.5, 1)])
def test_at_least_one_row_is_counted(rows: int, share: float, count: int) -> None:
    assert counted_rows(rows, share) == count


def test_a_forward_difference_on_a_share_is_refused_and_a_share_without_products_has_no_effect() -> None:
    engine = EngineConfig(device="cpu")
    with pytest.raises(ValueError, match=r"product_share 0\.5 leaves rows out: set derivative to 'central'"):
        UnlearnConfig(engine=engine, method=paper_config(derivative="forward", product_share=0.5))
    config = UnlearnConfig(engine=engine, method=paper_config(variant="first_order", product_share=0.5))
    assert "method.product_share has no effect: no Hessian-vector product is computed" in config.ineffective()
