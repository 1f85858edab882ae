"""The alternatives to the paper's similarity term: ``projection``, compared with ½‖p‖², and ``none``."""

from __future__ import annotations

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
    relative_error,
)
from method_specs import ofmu_trajectory
from ofmu.config.files import validate
from ofmu.errors import ConfigError
from ofmu.methods.ofmu.config import OfmuConfig
from ofmu.run_config import UnlearnConfig
from ofmu.testing import run
from ofmu.vectors.base import Displacement

PAIRS = [("central", "central"), ("exact", "exact"), ("exact", "central"), ("forward", "central")]
QUADRATIC, CURVED = (FORGET, RETAIN), (CURVED_F, CURVED_R)


def residual(x: Tensor, losses: tuple[AnalyticLoss, AnalyticLoss]) -> Tensor:
    """Return ½‖p‖² = ½(‖g_f‖² − <g_f, g_r>²/‖g_r‖²) as a function of x, where c is not constant."""
    f, r = (torch.autograd.grad(loss.function(x), x, create_graph=True)[0] for loss in losses)
    return 0.5 * (f @ f - (f @ r) ** 2 / (r @ r))


def test_the_direction_is_the_forget_gradient_without_its_part_along_the_retain_gradient() -> None:
    derivatives, _ = make_derivatives(paper_config(decorrelation="projection"), FORGET, RETAIN)
    phi = derivatives.phi_gradient([0, 1], [0, 1, 2])
    f, r = A @ (THETA - CENTRE_F), B @ (THETA - CENTRE_R)
    unit = r / r.norm()
    assert relative_error(phi.gradient[0], f - (f @ unit) * unit) < 1e-12
    assert abs(float(phi.gradient[0] @ r)) < 1e-12 * float(f.norm() * r.norm())
    assert phi.norm == pytest.approx(float((f - (f @ unit) * unit).norm()), rel=1e-12)
    assert phi.hinge_open
    assert phi.point.similarity.projection_coefficient == pytest.approx(float(f @ r / (r @ r)), rel=1e-12)


@pytest.mark.parametrize("losses", [QUADRATIC, CURVED], ids=["quadratic", "curved"])
@pytest.mark.parametrize(("mode", "outer"), PAIRS)
def test_the_penalty_is_the_gradient_of_the_squared_residual(
    mode: str, outer: str, losses: tuple[AnalyticLoss, AnalyticLoss]
) -> None:
    config = paper_config(decorrelation="projection", derivative=mode, outer_derivative=outer)
    derivatives, _ = make_derivatives(config, *losses)
    phi = derivatives.phi_gradient([0], [0])
    x = THETA.clone().requires_grad_()
    value = residual(x, losses)
    assert phi.norm**2 / 2 == pytest.approx(value.item(), rel=1e-10)
    expected = torch.autograd.grad(value, x)[0]
    assert relative_error(derivatives.penalty_product(phi)[0], expected) < TOLERANCE[outer]


def test_the_penalty_of_quadratics_is_the_product_of_both_hessians() -> None:
    derivatives, _ = make_derivatives(paper_config(decorrelation="projection", derivative="exact"), FORGET, RETAIN)
    f, r = A @ (THETA - CENTRE_F), B @ (THETA - CENTRE_R)
    c = f @ r / (r @ r)
    product = derivatives.penalty_product(derivatives.phi_gradient([0], [0]))
    assert relative_error(product[0], (A - c * B) @ (f - c * r)) < TOLERANCE["exact"]


def test_the_penalty_agrees_with_differences_of_the_residual_itself() -> None:
    derivatives, engine = make_derivatives(paper_config(decorrelation="projection"), CURVED_F, CURVED_R)
    product = derivatives.penalty_product(derivatives.phi_gradient([0], [0]))[0]
    step, differences = 1e-5, torch.zeros_like(product)
    units = torch.eye(len(product), dtype=product.dtype)
    with engine.space.preserving_parameters() as origin:
        for index in range(len(product)):
            values = []
            for sign in (step, -step):
                engine.space.displace(origin, Displacement(sign, [(1.0, [units[index]])]))
                values.append(derivatives.phi_gradient([0], [0]).norm ** 2 / 2)
            differences[index] = (values[0] - values[1]) / (2 * step)
    assert relative_error(product, differences) < 1e-6


@pytest.mark.parametrize("outer", ["central", "exact"])
def test_at_or_below_the_threshold_nothing_is_projected(outer: str) -> None:
    f, r = A @ (THETA - CENTRE_F), B @ (THETA - CENTRE_R)
    cosine = float(f @ r / f.norm() / r.norm())
    for threshold, is_open in ((cosine - 1e-6, True), (cosine + 1e-6, False)):
        config = paper_config(decorrelation="projection", similarity_threshold=threshold, outer_derivative=outer)
        derivatives, _ = make_derivatives(config, FORGET, RETAIN)
        phi = derivatives.phi_gradient([0], [0])
        assert phi.hinge_open is is_open
        if not is_open:
            torch.testing.assert_close(phi.gradient[0], f, rtol=1e-12, atol=0)
            assert relative_error(derivatives.penalty_product(phi)[0], A @ f) < TOLERANCE[outer]


@pytest.mark.parametrize("mode", ["central", "exact"])
def test_none_is_plain_ascent_at_any_similarity(mode: str) -> None:
    config = paper_config(decorrelation="none", similarity_weight=0.7, derivative=mode)
    derivatives, _ = make_derivatives(config, CURVED_F, CURVED_R)
    phi = derivatives.phi_gradient([0], [0])
    assert not phi.hinge_open
    x = THETA.clone().requires_grad_()
    f = torch.autograd.grad(CURVED_F.function(x), x, create_graph=True)[0]
    assert relative_error(phi.gradient[0], f.detach()) < 1e-12
    expected = torch.autograd.grad(0.5 * f @ f, x)[0]
    assert relative_error(derivatives.penalty_product(phi)[0], expected) < TOLERANCE[mode]


COSTS = [
    # (decorrelation, outer_derivative, evaluations of the direction, evaluations of a whole outer step)
    ("projection", "central", 2, 6),
    ("projection", "exact", 2, 6),
    ("none", "central", 2, 4),
    ("none", "exact", 2, 4),
]


@pytest.mark.parametrize(("decorrelation", "outer", "inner_cost", "outer_cost"), COSTS)
def test_each_alternative_has_its_number_of_gradient_evaluations(
    decorrelation: str, outer: str, inner_cost: int, outer_cost: int
) -> None:
    derivatives, engine = make_derivatives(
        paper_config(decorrelation=decorrelation, outer_derivative=outer), FORGET, RETAIN
    )
    before = engine.space.snapshot()
    phi = derivatives.phi_gradient([0], [0])
    assert engine.cost_tracker.gradient_evaluations == inner_cost
    derivatives.penalty_product(phi)
    assert engine.cost_tracker.gradient_evaluations == outer_cost
    assert torch.equal(before[0], engine.space.masters()[0])


def test_with_a_vanishing_retain_gradient_nothing_is_projected() -> None:
    flat = AnalyticLoss(lambda x: (x * 0).sum())
    derivatives, _ = make_derivatives(paper_config(decorrelation="projection"), FORGET, flat)
    phi = derivatives.phi_gradient([0], [0])
    assert not phi.hinge_open
    assert relative_error(derivatives.penalty_product(phi)[0], A @ A @ (THETA - CENTRE_F)) < TOLERANCE["central"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decorrelation", "round_cost", "check_cost"), [("projection", 3 * 2 + 6, 4), ("none", 3 * 1 + 4, 2)]
)
def test_a_run_uses_the_alternative_at_its_cost(decorrelation: str, round_cost: int, check_cost: int) -> None:
    outcome = run(ofmu_trajectory(decorrelation=decorrelation, outer_steps=2))
    assert outcome.gradient_evaluations == 2 * round_cost + check_cost
    for record in outcome.records:
        cosine, size = record["similarity"], record["forget_gradient_norm"]
        expected = size * (1 - cosine**2) ** 0.5 if decorrelation == "projection" else size
        assert record["phi_norm"] == pytest.approx(expected, rel=1e-4)
        assert record["hinge_open"] is (decorrelation == "projection")


def test_a_run_without_any_projection_warns() -> None:
    with pytest.warns(UserWarning, match="method.decorrelation projection had no effect"):
        run(ofmu_trajectory(decorrelation="projection", similarity_threshold=1.0, outer_steps=1))


def test_settings_without_effect_on_an_alternative_are_named() -> None:
    def notes(**settings: object) -> str:
        return " ".join(OfmuConfig.model_validate(settings).ineffective())

    assert notes(decorrelation="projection") == notes(decorrelation="none") == ""
    assert "method.similarity_weight has no effect" in notes(decorrelation="projection", similarity_weight=0.5)
    assert "method.similarity_weight has no effect" in notes(decorrelation="none", similarity_weight=0)
    assert "method.similarity_scale has no effect" in notes(decorrelation="none", similarity_scale="absolute")
    assert "method.similarity_threshold has no effect" in notes(decorrelation="none", similarity_threshold=0.5)
    assert "method.forget_sharpness has no effect" in notes(forget_margin=None, forget_sharpness=2)
    assert notes(forget_sharpness=2) == ""
    assert "similarity_threshold" not in notes(decorrelation="projection", similarity_threshold=0.5)
    assert "method.decorrelation has no effect" in notes(decorrelation="projection", similarity_threshold=1)
    assert "method.derivative 'forward' has no effect" in notes(decorrelation="none", derivative="forward")
    unchecked = {"decorrelation": "projection", "penalty_weight": 0, "derivative_check_every": 2}
    assert "derivative_check_every has no effect" in notes(**unchecked)


def test_only_the_outer_hvp_mode_must_suit_the_engine_if_phi_needs_no_hvp() -> None:
    method = {"decorrelation": "none", "derivative": "forward", "outer_derivative": "exact"}
    config = UnlearnConfig.model_validate({"method": method, "engine": {"precision": "bf16"}})
    assert config.method.needs_double_backward
    assert paper_config(decorrelation="projection", penalty_weight=0).uses_hvp is False
    with pytest.raises(ConfigError, match="fp32 weights"):
        validate(UnlearnConfig, {"method": method | {"outer_derivative": "central"}, "engine": {"precision": "bf16"}})
