"""Checked finite differences: the step fits the loss, and an inaccurate derivative warns or stops the run."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from analytic import (
    CURVED_F,
    CURVED_R,
    FORGET,
    RETAIN,
    THETA,
    AnalyticLoss,
    make_derivatives,
    paper_config,
    relative_error,
)
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.errors import DerivativeError
from ofmu.methods.ofmu.checked import CheckedDerivatives
from ofmu.methods.ofmu.config import OfmuConfig
from ofmu.methods.ofmu.derivatives import INNER_STEP, OUTER_STEP, Derivatives
from ofmu.testing import tiny_language_task

STIFF_F = AnalyticLoss(lambda x: torch.sin(1e4 * x).sum() / 1e4 + 0.5 * x @ x)
"""Its third derivative is so large that the first step is far too long."""
JUMPING_F = AnalyticLoss(lambda x: (x - THETA).abs().sum() + x.sum())
"""Its gradient jumps at THETA, along every direction."""


def checked(
    forget_loss: AnalyticLoss, retain_loss: AnalyticLoss, model_config: Any = None, **settings: Any
) -> tuple[CheckedDerivatives[int], Any]:
    config = paper_config(**({"similarity_weight": 0.5} | settings))
    derivatives, engine = make_derivatives(config, forget_loss, retain_loss)
    return CheckedDerivatives(derivatives, config, model_config), engine


def exact_phi_gradient(forget_loss: AnalyticLoss, retain_loss: AnalyticLoss) -> torch.Tensor:
    derivatives, _ = make_derivatives(paper_config(similarity_weight=0.5, derivative="exact"), forget_loss, retain_loss)
    return derivatives.phi_gradient([0], [0]).gradient[0]


@pytest.mark.parametrize(("mode", "tolerance", "check"), [("central", 1e-3, 4), ("forward", 2e-2, 2)])
def test_accurate_differences_keep_their_step_and_cost_one_more_difference(mode, tolerance, check):
    derivatives, engine = checked(CURVED_F, CURVED_R, derivative=mode)
    plain, _ = make_derivatives(paper_config(similarity_weight=0.5, derivative=mode), CURVED_F, CURVED_R)
    phi, expected = derivatives.phi_gradient([0], [0]), plain.phi_gradient([0], [0])
    assert torch.equal(phi.gradient[0], expected.gradient[0])
    assert derivatives.state()["inner_step"] == INNER_STEP[mode]
    assert engine.cost_tracker.gradient_evaluations == 2 + check + check
    error = relative_error(phi.gradient[0], exact_phi_gradient(CURVED_F, CURVED_R))
    assert error <= 1.01 * derivatives.inner_error
    assert derivatives.inner_error < tolerance


@pytest.mark.parametrize(("mode", "tolerance"), [("central", 1e-3), ("forward", 2e-2)])
def test_a_step_that_is_too_long_is_shortened_and_kept(mode, tolerance):
    exact = exact_phi_gradient(STIFF_F, CURVED_R)
    plain, _ = make_derivatives(paper_config(similarity_weight=0.5, derivative=mode), STIFF_F, CURVED_R)
    assert relative_error(plain.phi_gradient([0], [0]).gradient[0], exact) > tolerance
    derivatives, engine = checked(STIFF_F, CURVED_R, derivative=mode)
    assert relative_error(derivatives.phi_gradient([0], [0]).gradient[0], exact) < tolerance
    assert derivatives.state()["inner_step"] < INNER_STEP[mode]
    before = engine.cost_tracker.gradient_evaluations
    assert relative_error(derivatives.phi_gradient([0], [0]).gradient[0], exact) < tolerance
    assert engine.cost_tracker.gradient_evaluations == before + (6 if mode == "central" else 4)


def test_the_step_of_the_penalty_is_shortened_too():
    exact, _ = make_derivatives(
        paper_config(similarity_weight=0.5, derivative="exact", outer_derivative="exact"), STIFF_F, CURVED_R
    )
    expected = exact.penalty_product(exact.phi_gradient([0], [0]))[0]
    derivatives, engine = checked(STIFF_F, CURVED_R, derivative="exact", outer_derivative="central")
    phi = derivatives.phi_gradient([0], [0])
    added = derivatives.outer_direction(phi, engine.space.zeros(), 1.0)[0]
    assert relative_error(added, expected) < 2e-2
    assert derivatives.outer_error is not None
    assert derivatives.state()["outer_steps"]["open"] < OUTER_STEP


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_an_exact_product_that_uses_up_the_gradients_is_the_same(weight):
    """``weight`` is β. At 0.5 the hinge is open, and the product takes the memory of g_f and g_r."""
    settings = {"derivative": "exact", "outer_derivative": "exact", "similarity_weight": weight}
    plain, _ = make_derivatives(paper_config(**settings), CURVED_F, CURVED_R)
    phi = plain.phi_gradient([0], [0])
    before = [part.clone() for part in (phi.point.forget_gradient[0], phi.point.retain_gradient[0])]
    product = plain.penalty_product(phi)[0]
    assert torch.equal(phi.point.forget_gradient[0], before[0])
    assert torch.equal(phi.point.retain_gradient[0], before[1])
    derivatives, _ = checked(CURVED_F, CURVED_R, **settings)
    phi = derivatives.phi_gradient([0], [0])
    direction = derivatives.outer_direction(phi, phi.point.retain_gradient, 0.3)[0]
    assert relative_error(direction, before[1] + 0.3 * product) < 1e-12
    assert (phi.point.retain_gradient == []) == (weight > 0)


def test_a_gradient_that_jumps_stops_the_run_with_the_fix():
    with pytest.raises(DerivativeError, match=r"estimated error of ∇Φ is \d+%.*set method.derivative to 'exact'"):
        checked(JUMPING_F, RETAIN)[0].phi_gradient([0], [0])


def test_a_model_that_routes_tokens_to_experts_is_named():
    with pytest.raises(DerivativeError, match="routes tokens to experts"):
        checked(JUMPING_F, RETAIN, SimpleNamespace(num_local_experts=4))[0].phi_gradient([0], [0])


def test_an_error_between_both_limits_warns_once(monkeypatch):
    monkeypatch.setattr("ofmu.methods.ofmu.checked.LARGEST_ERROR", float("inf"))
    derivatives, _ = checked(JUMPING_F, RETAIN, derivative_check_every=1)
    with pytest.warns(UserWarning, match="Finite differences do not suit this model"):
        derivatives.phi_gradient([0], [0])
    derivatives.begin_outer_step(1)
    with warnings.catch_warnings(action="error"):
        derivatives.phi_gradient([0], [0])


def test_the_check_comes_again_after_the_given_number_of_outer_steps():
    derivatives, _ = checked(FORGET, RETAIN, derivative_check_every=2)
    found = []
    for steps_taken in range(5):
        derivatives.begin_outer_step(steps_taken)
        derivatives.phi_gradient([0], [0])
        found.append(derivatives.inner_error is not None)
    assert found == [True, False, True, False, True]


def test_a_restored_check_continues_with_its_steps():
    derivatives, _ = checked(STIFF_F, CURVED_R)
    phi = derivatives.phi_gradient([0], [0])
    restored, engine = checked(STIFF_F, CURVED_R)
    restored.restore(json.loads(json.dumps(derivatives.state())))
    assert relative_error(restored.phi_gradient([0], [0]).gradient[0], phi.gradient[0]) < 1e-12
    assert engine.cost_tracker.gradient_evaluations == 6


def outer_error(derivatives: CheckedDerivatives[int], engine: TorchEngine, *, hinge_open: bool) -> float | None:
    """Take an outer direction with the hinge in a given state. Return the estimated error, None without a check."""
    derivatives.begin_outer_step(0)
    inner = derivatives._derivatives
    point = inner._point([0], [0], engine)
    phi = inner._phi_gradient_at(point, exceeds=hinge_open, weight=0.5)
    derivatives.outer_direction(phi, engine.space.zeros(), 1.0)
    return derivatives.outer_error


@pytest.mark.parametrize("first_open", [False, True])
def test_the_first_difference_at_either_state_of_the_hinge_is_checked_and_has_its_own_step(first_open):
    settings = {"derivative": "exact", "outer_derivative": "central", "derivative_check_every": 0}
    derivatives, engine = checked(STIFF_F, CURVED_R, **settings)
    alone, other_engine = checked(STIFF_F, CURVED_R, **settings)
    assert outer_error(derivatives, engine, hinge_open=first_open) is not None
    assert outer_error(derivatives, engine, hinge_open=first_open) is None
    second = outer_error(derivatives, engine, hinge_open=not first_open)
    assert second is not None
    assert second == outer_error(alone, other_engine, hinge_open=not first_open)
    steps, one = derivatives.state()["outer_steps"], alone.state()["outer_steps"]
    state, other = ("closed", "open") if first_open else ("open", "closed")
    assert (steps[state], one[other]) == (one[state], OUTER_STEP)
    assert steps[other] < OUTER_STEP
    assert {outer_error(derivatives, engine, hinge_open=state) for state in (False, True)} == {None}


def test_a_restored_check_remembers_which_outer_differences_it_has_checked():
    settings = {"derivative": "exact", "outer_derivative": "central", "derivative_check_every": 0}
    first, engine = checked(STIFF_F, CURVED_R, **settings)
    outer_error(first, engine, hinge_open=False)
    restored, engine = checked(STIFF_F, CURVED_R, **settings)
    restored.restore(json.loads(json.dumps(first.state())))
    assert restored.state() == first.state()
    assert outer_error(restored, engine, hinge_open=False) is None
    assert outer_error(restored, engine, hinge_open=True) is not None


def test_a_checkpoint_that_does_not_tell_the_outer_differences_apart_has_them_checked_again():
    """Checkpoints had one step and one flag for both states of the hinge."""
    derivatives, engine = checked(CURVED_F, CURVED_R, derivative="exact", outer_derivative="central")
    derivatives.restore({"inner_step": 0.0, "outer_step": 2e-5, "inner_due": False, "outer_due": False})
    assert derivatives.state()["outer_steps"] == {"closed": 2e-5, "open": 2e-5}
    assert outer_error(derivatives, engine, hinge_open=True) is not None
    assert outer_error(derivatives, engine, hinge_open=False) is not None


def test_exact_products_are_not_checked():
    derivatives, engine = checked(JUMPING_F, RETAIN, derivative="exact")
    derivatives.outer_direction(derivatives.phi_gradient([0], [0]), engine.space.zeros(), 1.0)
    assert derivatives.inner_error is derivatives.outer_error is None


def tiny_mixtral(dtype: torch.dtype) -> MixtralForCausalLM:
    """Build a model whose gradient jumps where a token changes its experts."""
    config = MixtralConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MixtralForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model.to(dtype)


def mixtral_phi_gradient(dtype: torch.dtype, mode: str, *, check: bool) -> torch.Tensor:
    task = tiny_language_task()
    engine = TorchEngine(tiny_mixtral(dtype), CostTracker())
    config = OfmuConfig(derivative=mode, similarity_threshold=-1, forget_margin=None)
    derivatives: Any = Derivatives(engine, task.loss, task.loss, config)
    if check:
        derivatives = CheckedDerivatives(derivatives, config, engine.model.config)
    phi = derivatives.phi_gradient(task.forget_rows[:6], task.retain_rows[:6])
    return torch.cat([part.double() for part in phi.gradient])


@pytest.mark.slow
def test_a_step_across_the_jumps_of_expert_routing_is_shortened_until_it_meets_none():
    exact = mixtral_phi_gradient(torch.float64, "exact", check=False)
    assert relative_error(mixtral_phi_gradient(torch.float32, "central", check=False), exact) > 0.05
    assert relative_error(mixtral_phi_gradient(torch.float32, "central", check=True), exact) < 0.01
