"""∇S, ∇Φ and ∇²Φ·∇Φ against closed forms in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from analytic import (
    CENTRE_F,
    CENTRE_R,
    CURVED_F,
    CURVED_R,
    FORGET,
    RETAIN,
    THETA,
    TOLERANCE,
    A,
    AnalyticLoss,
    B,
    derivatives,
    paper,
    phi_gradient_of_quadratics,
    relative,
    similarity_gradient_of_quadratics,
)


@pytest.mark.parametrize("way", ["exact", "central", "forward"])
def test_phi_gradient_matches_the_closed_form(way: str) -> None:
    method = paper(derivative=way, similarity_weight=0.7, similarity_threshold=-1)
    room, _ = derivatives(method, FORGET, RETAIN)
    phi = room.phi_gradient([0, 1], [0, 1, 2])
    assert relative(phi.gradient[0], phi_gradient_of_quadratics(THETA, 0.7)) < TOLERANCE[way]
    similarity_part = (phi.gradient[0] - A @ (THETA - CENTRE_F)) / -0.7
    assert relative(similarity_part, similarity_gradient_of_quadratics(THETA)) < TOLERANCE[way]


@pytest.mark.parametrize(("way", "outer"), [("exact", "exact"), ("exact", "central"), ("central", "central")])
def test_penalty_product_matches_the_closed_form(way: str, outer: str) -> None:
    """The closed form of ∇²Φ is the Jacobian of the written-out ∇Φ of quadratics."""
    method = paper(derivative=way, outer_derivative=outer, similarity_weight=0.7)
    room, _ = derivatives(method, FORGET, RETAIN)
    phi = room.phi_gradient([0], [0])
    product = room.penalty_product(phi, [0], [0])
    jacobian = torch.autograd.functional.jacobian(lambda x: phi_gradient_of_quadratics(x, 0.7), THETA)
    expected = jacobian @ phi_gradient_of_quadratics(THETA, 0.7)
    assert relative(product[0], expected) < TOLERANCE[outer]


@pytest.mark.parametrize(("way", "outer"), [("exact", "exact"), ("central", "central")])
def test_curved_losses_match_automatic_differentiation_of_phi(way: str, outer: str) -> None:
    """Losses with third derivatives: the reference differentiates Φ itself, as one scalar function."""
    beta = 0.4

    def phi_of(x: Tensor) -> Tensor:
        f = torch.autograd.grad(CURVED_F.function(x), x, create_graph=True)[0]
        r = torch.autograd.grad(CURVED_R.function(x), x, create_graph=True)[0]
        return CURVED_F.function(x) - beta * f @ r / (f.norm() * r.norm())

    x = THETA.clone().requires_grad_()
    gradient = torch.autograd.grad(phi_of(x), x, create_graph=True)[0]
    expected = torch.autograd.grad(0.5 * gradient @ gradient, x)[0]

    room, _ = derivatives(paper(derivative=way, outer_derivative=outer, similarity_weight=beta), CURVED_F, CURVED_R)
    phi = room.phi_gradient([0], [0])
    assert relative(phi.gradient[0], gradient.detach()) < TOLERANCE[way]
    assert relative(room.penalty_product(phi, [0], [0])[0], expected) < TOLERANCE[outer]


@pytest.mark.parametrize(("way", "outer"), [("exact", "exact"), ("exact", "central"), ("central", "central")])
def test_a_weight_on_the_gradients_scale_is_a_constant_of_the_point(way: str, outer: str) -> None:
    method = paper(derivative=way, outer_derivative=outer, similarity_weight=0.7, similarity_scale="gradients")
    room, _ = derivatives(method, FORGET, RETAIN)
    phi = room.phi_gradient([0], [0])
    beta = 0.7 * float((A @ (THETA - CENTRE_F)).norm() * (B @ (THETA - CENTRE_R)).norm())
    assert phi.weight == pytest.approx(beta, rel=1e-12)
    gradient = phi_gradient_of_quadratics(THETA, beta)
    assert relative(phi.gradient[0], gradient) < TOLERANCE[way]
    jacobian = torch.autograd.functional.jacobian(lambda x: phi_gradient_of_quadratics(x, beta), THETA)
    assert relative(room.penalty_product(phi, [0], [0])[0], jacobian @ gradient) < TOLERANCE[outer]


def test_a_closed_hinge_leaves_the_forget_gradient_and_its_hessian() -> None:
    method = paper(similarity_weight=0.7, similarity_threshold=1.0)
    room, _ = derivatives(method, FORGET, RETAIN)
    phi = room.phi_gradient([0], [0])
    g_f = A @ (THETA - CENTRE_F)
    assert not phi.hinge_open
    torch.testing.assert_close(phi.gradient[0], g_f, rtol=1e-12, atol=0)
    assert relative(room.penalty_product(phi, [0], [0])[0], A @ g_f) < TOLERANCE["central"]


def test_the_hinge_opens_exactly_above_the_threshold() -> None:
    f, r = A @ (THETA - CENTRE_F), B @ (THETA - CENTRE_R)
    cosine = float(f @ r / f.norm() / r.norm())
    for threshold, is_open in ((cosine - 1e-6, True), (cosine + 1e-6, False)):
        room, _ = derivatives(paper(similarity_weight=0.1, similarity_threshold=threshold), FORGET, RETAIN)
        assert room.phi_gradient([0], [0]).hinge_open is is_open


COSTS = [
    # (derivative, outer_derivative, hinge open): ∇Φ, whole outer step, as counted in method.md
    ("forward", "central", True, 4, 12),
    ("central", "central", True, 6, 18),
    ("forward", "central", False, 2, 4),
    ("central", "central", False, 2, 4),
]


@pytest.mark.parametrize(("way", "outer", "is_open", "inner_cost", "outer_cost"), COSTS)
def test_gradient_evaluations_are_counted_as_stated(
    way: str, outer: str, is_open: bool, inner_cost: int, outer_cost: int
) -> None:
    threshold = -1.0 if is_open else 1.0
    method = paper(derivative=way, outer_derivative=outer, similarity_weight=0.5, similarity_threshold=threshold)
    room, engine = derivatives(method, FORGET, RETAIN)
    phi = room.phi_gradient([0], [0])
    assert engine.cost_tracker.gradient_evaluations == inner_cost
    room.penalty_product(phi, [0], [0])
    assert engine.cost_tracker.gradient_evaluations == outer_cost


@pytest.mark.parametrize("way", ["central", "forward", "exact"])
def test_parameters_are_the_same_bits_afterwards(way: str) -> None:
    room, engine = derivatives(paper(derivative=way, similarity_weight=0.5), FORGET, RETAIN)
    before = engine.space.snapshot()
    phi = room.phi_gradient([0], [0])
    room.penalty_product(phi, [0], [0])
    assert torch.equal(before[0], engine.space.masters()[0])


def test_step_check_is_small_where_differences_are_accurate() -> None:
    room, _ = derivatives(paper(derivative="central", similarity_weight=0.5), CURVED_F, CURVED_R)
    phi = room.phi_gradient([0], [0])
    check = room.step_check(phi, [0], [0])
    assert check is not None
    assert 0 < check < 1e-4


def test_step_check_does_not_exist_for_exact_derivatives() -> None:
    room, _ = derivatives(paper(derivative="exact", similarity_weight=0.5), CURVED_F, CURVED_R)
    assert room.step_check(room.phi_gradient([0], [0]), [0], [0]) is None


def test_a_vanishing_gradient_closes_the_hinge() -> None:
    flat = AnalyticLoss(lambda x: (x * 0).sum())
    room, _ = derivatives(paper(similarity_weight=0.5), FORGET, flat)
    phi = room.phi_gradient([0], [0])
    assert not phi.hinge_open
    assert phi.similarity == 0
    assert math.isfinite(phi.norm)
