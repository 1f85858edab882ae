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
    make_derivatives,
    paper_config,
    phi_gradient_of_quadratics,
    relative_error,
    similarity_gradient_of_quadratics,
)


@pytest.mark.parametrize("mode", ["exact", "reverse_over_forward", "central", "forward"])
def test_phi_gradient_matches_the_closed_form(mode: str) -> None:
    config = paper_config(derivative=mode, similarity_weight=0.7, similarity_threshold=-1)
    derivatives, _ = make_derivatives(config, FORGET, RETAIN)
    phi = derivatives.phi_gradient([0, 1], [0, 1, 2])
    assert relative_error(phi.gradient[0], phi_gradient_of_quadratics(THETA, 0.7)) < TOLERANCE[mode]
    similarity_part = (phi.gradient[0] - A @ (THETA - CENTRE_F)) / -0.7
    assert relative_error(similarity_part, similarity_gradient_of_quadratics(THETA)) < TOLERANCE[mode]


@pytest.mark.parametrize(
    ("mode", "outer"),
    [
        ("exact", "exact"),
        ("exact", "central"),
        ("reverse_over_forward", "central"),
        ("reverse_over_forward", "exact"),
        ("central", "central"),
    ],
)
def test_penalty_product_matches_the_closed_form(mode: str, outer: str) -> None:
    """The closed form of ∇²Φ is the Jacobian of the written-out ∇Φ of quadratics."""
    config = paper_config(derivative=mode, outer_derivative=outer, similarity_weight=0.7)
    derivatives, _ = make_derivatives(config, FORGET, RETAIN)
    phi = derivatives.phi_gradient([0], [0])
    product = derivatives.penalty_product(phi)
    jacobian = torch.autograd.functional.jacobian(lambda x: phi_gradient_of_quadratics(x, 0.7), THETA)
    expected = jacobian @ phi_gradient_of_quadratics(THETA, 0.7)
    assert relative_error(product[0], expected) < TOLERANCE[outer]


@pytest.mark.parametrize(("mode", "outer"), [("exact", "exact"), ("central", "central")])
def test_curved_losses_match_automatic_differentiation_of_phi(mode: str, outer: str) -> None:
    """The losses have third derivatives. The expected values differentiate Φ as one scalar function."""
    beta = 0.4

    def phi_of(x: Tensor) -> Tensor:
        f = torch.autograd.grad(CURVED_F.function(x), x, create_graph=True)[0]
        r = torch.autograd.grad(CURVED_R.function(x), x, create_graph=True)[0]
        return CURVED_F.function(x) - beta * f @ r / (f.norm() * r.norm())

    x = THETA.clone().requires_grad_()
    gradient = torch.autograd.grad(phi_of(x), x, create_graph=True)[0]
    expected = torch.autograd.grad(0.5 * gradient @ gradient, x)[0]

    derivatives, _ = make_derivatives(
        paper_config(derivative=mode, outer_derivative=outer, similarity_weight=beta), CURVED_F, CURVED_R
    )
    phi = derivatives.phi_gradient([0], [0])
    assert relative_error(phi.gradient[0], gradient.detach()) < TOLERANCE[mode]
    assert relative_error(derivatives.penalty_product(phi)[0], expected) < TOLERANCE[outer]


@pytest.mark.parametrize(
    ("mode", "outer"),
    [
        ("exact", "exact"),
        ("exact", "central"),
        ("reverse_over_forward", "central"),
        ("reverse_over_forward", "exact"),
        ("central", "central"),
    ],
)
def test_a_weight_in_the_unit_of_the_gradient_norms_is_a_constant_of_the_point(mode: str, outer: str) -> None:
    config = paper_config(derivative=mode, outer_derivative=outer, similarity_weight=0.7, similarity_scale="gradients")
    derivatives, _ = make_derivatives(config, FORGET, RETAIN)
    phi = derivatives.phi_gradient([0], [0])
    beta = 0.7 * float((A @ (THETA - CENTRE_F)).norm() * (B @ (THETA - CENTRE_R)).norm())
    assert phi.weight == pytest.approx(beta, rel=1e-12)
    gradient = phi_gradient_of_quadratics(THETA, beta)
    assert relative_error(phi.gradient[0], gradient) < TOLERANCE[mode]
    jacobian = torch.autograd.functional.jacobian(lambda x: phi_gradient_of_quadratics(x, beta), THETA)
    assert relative_error(derivatives.penalty_product(phi)[0], jacobian @ gradient) < TOLERANCE[outer]


def test_with_a_closed_hinge_phi_is_the_forget_loss() -> None:
    config = paper_config(similarity_weight=0.7, similarity_threshold=1.0)
    derivatives, _ = make_derivatives(config, FORGET, RETAIN)
    phi = derivatives.phi_gradient([0], [0])
    g_f = A @ (THETA - CENTRE_F)
    assert not phi.hinge_open
    torch.testing.assert_close(phi.gradient[0], g_f, rtol=1e-12, atol=0)
    assert relative_error(derivatives.penalty_product(phi)[0], A @ g_f) < TOLERANCE["central"]


def test_the_hinge_opens_exactly_above_the_threshold() -> None:
    f, r = A @ (THETA - CENTRE_F), B @ (THETA - CENTRE_R)
    cosine = float(f @ r / f.norm() / r.norm())
    for threshold, is_open in ((cosine - 1e-6, True), (cosine + 1e-6, False)):
        derivatives, _ = make_derivatives(
            paper_config(similarity_weight=0.1, similarity_threshold=threshold), FORGET, RETAIN
        )
        assert derivatives.phi_gradient([0], [0]).hinge_open is is_open


COSTS = [
    # (derivative, outer_derivative, hinge open, evaluations of ∇Φ, evaluations of a whole outer step)
    ("forward", "central", True, 4, 12),
    ("central", "central", True, 6, 18),
    ("forward", "central", False, 2, 4),
    ("central", "central", False, 2, 4),
]


@pytest.mark.parametrize(("mode", "outer", "is_open", "inner_cost", "outer_cost"), COSTS)
def test_each_mode_has_its_number_of_gradient_evaluations(
    mode: str, outer: str, is_open: bool, inner_cost: int, outer_cost: int
) -> None:
    threshold = -1.0 if is_open else 1.0
    config = paper_config(
        derivative=mode, outer_derivative=outer, similarity_weight=0.5, similarity_threshold=threshold
    )
    derivatives, engine = make_derivatives(config, FORGET, RETAIN)
    phi = derivatives.phi_gradient([0], [0])
    assert engine.cost_tracker.gradient_evaluations == inner_cost
    derivatives.penalty_product(phi)
    assert engine.cost_tracker.gradient_evaluations == outer_cost


@pytest.mark.parametrize("mode", ["central", "forward", "exact"])
def test_the_parameters_are_the_same_bits_afterwards(mode: str) -> None:
    derivatives, engine = make_derivatives(paper_config(derivative=mode, similarity_weight=0.5), FORGET, RETAIN)
    before = engine.space.snapshot()
    phi = derivatives.phi_gradient([0], [0])
    derivatives.penalty_product(phi)
    assert torch.equal(before[0], engine.space.masters()[0])


def test_a_vanishing_gradient_closes_the_hinge() -> None:
    flat = AnalyticLoss(lambda x: (x * 0).sum())
    derivatives, _ = make_derivatives(paper_config(similarity_weight=0.5), FORGET, flat)
    phi = derivatives.phi_gradient([0], [0])
    assert not phi.hinge_open
    assert phi.point.similarity.value == 0
    assert math.isfinite(phi.norm)
