"""The two loops on problems with known solutions."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ofmu.engine.base import HVP_COST
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.errors import NonFiniteLossError
from ofmu.methods.base import Context
from ofmu.methods.ofmu.bilevel import OFMU
from ofmu.methods.ofmu.config import OfmuConfig

CURVATURE_F = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
CURVATURE_R = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
START = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(START.clone())

    def forward(self) -> Tensor:
        return self.x


Function = Callable[[Tensor], Tensor]


class FunctionLoss:
    """A loss that depends only on the parameters. The functions of forget and retain rows differ."""

    def __init__(self, functions: dict[str, Function]) -> None:
        self.functions = functions

    def size(self, row: str) -> int:
        return 1

    def tokens(self, row: str) -> int:
        return 1

    def total(self, module: Callable[..., Any], rows: Sequence[str], device: torch.device) -> Tensor:
        return len(rows) * self.functions[rows[0]](module())

    def row_means(self, module: Callable[..., Any], rows: Sequence[str], device: torch.device) -> Tensor:
        return self.functions[rows[0]](module()).expand(len(rows))


class FunctionTask:
    forget_rows, retain_rows = ["forget"] * 2, ["retain"] * 3

    def __init__(self, forget: Function, retain: Function) -> None:
        self.loss = FunctionLoss({"forget": forget, "retain": retain})


def concave(x: Tensor) -> Tensor:
    """The inner level maximises Φ, so the forget loss of a well-posed problem is strongly concave."""
    return -0.5 * (CURVATURE_F * x**2).sum()


def convex(x: Tensor) -> Tensor:
    return 0.5 * (CURVATURE_R * x**2).sum()


def bowl(x: Tensor) -> Tensor:
    return 0.5 * (x**2).sum()


def make_run(forget: Function = concave, retain: Function = convex, **settings: Any) -> OFMU[str]:
    paper = {"forget_margin": None, "similarity_scale": "absolute", "similarity_threshold": -1.0}
    plain = {"inner_update": "sgd", "outer_update": "sgd", "similarity_weight": 0.0, "batch_size": 1}
    rates = {"inner_lr": 0.05, "outer_lr": 1e-3}
    config = OfmuConfig(**(paper | plain | rates | settings))
    engine = TorchEngine(Point(), CostTracker())
    return OFMU(Context(engine, FunctionTask(forget, retain), seed=0), config)


def squared_outer_gradients(outer_steps: int, inner_steps: int) -> list[float]:
    run = make_run(
        outer_steps=outer_steps,
        inner_steps=inner_steps,
        inner_lr=0.02,
        outer_lr=0.01,
        penalty_weight=0.5,
        derivative="exact",
    )
    return [record.outer_norm**2 for record in run.rounds()]


def log_log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


@pytest.mark.slow
def test_the_outer_gradient_falls_with_k_as_the_paper_states() -> None:
    """The mean of ‖∇F‖² over K rounds falls like 1/K (the paper's term O(1/K))."""
    sweep = [100, 200, 400, 800]
    means = [float(np.mean(squared_outer_gradients(count, 3))) for count in sweep]
    assert log_log_slope(sweep, means) == pytest.approx(-1.0, abs=0.02)


@pytest.mark.slow
def test_the_outer_gradient_falls_with_t_at_least_as_fast_as_the_paper_states() -> None:
    """By the paper's term K/T², twice the T divides ‖∇F‖² after K rounds by at least 4. Without it, T has no effect."""
    sweep = [2, 4, 8, 16]
    finals = [squared_outer_gradients(20, count)[-1] for count in sweep]
    assert log_log_slope(sweep, finals) <= -2.0
    assert all(later <= earlier / 4 for earlier, later in itertools.pairwise(finals))


def test_the_outer_direction_is_the_gradient_of_the_penalised_objective() -> None:
    """Compare one outer step with autograd on F = L_r + ρ‖∇Φ‖². This checks the factor 2ρ and all signs."""
    rho, lr, beta = 0.3, 0.05, 0.4
    centre = torch.tensor([0.5, 0.5, -1.0], dtype=torch.float64)

    def forget(x: Tensor) -> Tensor:
        return 0.5 * (CURVATURE_F * (x - centre) ** 2).sum()

    run = make_run(
        forget,
        outer_steps=1,
        inner_steps=0,
        outer_lr=lr,
        penalty_weight=rho,
        similarity_weight=beta,
        derivative="exact",
    )
    x = START.clone().requires_grad_()
    f = torch.autograd.grad(forget(x), x, create_graph=True)[0]
    r = torch.autograd.grad(convex(x), x, create_graph=True)[0]
    phi = forget(x) - beta * f @ r / (f.norm() * r.norm())
    residual = torch.autograd.grad(phi, x, create_graph=True)[0]
    objective = convex(x) + rho * residual @ residual
    expected = START - lr * torch.autograd.grad(objective, x)[0]
    list(run.rounds())
    torch.testing.assert_close(run.vectors()["theta"][0], expected, rtol=1e-10, atol=1e-12)


def test_the_inner_step_ascends_phi() -> None:
    run = make_run(outer_steps=1, inner_steps=1, inner_lr=0.1, outer_lr=1e-12, penalty_weight=0)
    list(run.rounds())
    expected = START + 0.1 * (-CURVATURE_F * START)
    torch.testing.assert_close(run.vectors()["theta"][0], expected, rtol=1e-9, atol=1e-9)


def test_a_normalized_step_has_the_length_of_the_learning_rate() -> None:
    run = make_run(
        outer_steps=1, inner_steps=1, inner_update="normalized", inner_lr=0.1, outer_lr=1e-12, penalty_weight=0
    )
    list(run.rounds())
    assert float((run.vectors()["theta"][0] - START).norm()) == pytest.approx(0.1, rel=1e-9)


@pytest.mark.parametrize("rule", ["inner", "outer"])
def test_adamw_matches_torch(rule: str) -> None:
    settings = {f"{rule}_update": "adamw", f"{rule}_lr": 0.1, "penalty_weight": 0.0}
    other = "outer" if rule == "inner" else "inner"
    run = make_run(outer_steps=4, inner_steps=1, **(settings | {f"{other}_lr": 1e-300}))
    list(run.rounds())
    x = nn.Parameter(START.clone())
    optimizer = torch.optim.AdamW([x], lr=0.1, weight_decay=0.0, maximize=rule == "inner")
    for _ in range(4):
        optimizer.zero_grad()
        (concave if rule == "inner" else convex)(x).backward()
        optimizer.step()
    torch.testing.assert_close(run.vectors()["theta"][0], x.data, rtol=1e-9, atol=1e-12)


def test_the_penalty_grows_to_its_cap() -> None:
    run = make_run(outer_steps=4, inner_steps=0, penalty_weight=1e-3, penalty_growth=2.0, penalty_max=5e-3)
    assert [record.penalty_weight for record in run.rounds()] == pytest.approx([1e-3, 2e-3, 4e-3, 5e-3])


def test_a_clipped_direction_has_the_maximum_norm() -> None:
    run = make_run(outer_steps=1, inner_steps=0, outer_lr=1.0, max_grad_norm=0.25, penalty_weight=0)
    (record,) = run.rounds()
    assert record.outer_norm > 0.25
    assert float((run.vectors()["theta"][0] - START).norm()) == pytest.approx(0.25, rel=1e-9)


def test_ascent_of_the_clamped_loss_slows_down_near_the_margin() -> None:
    """With one row of loss ℓ = x²/2, a ``normalized`` step is η_in·dℓ̃/dℓ, and an ``sgd`` step η_in·dℓ̃/dℓ·x."""
    margin = float(bowl(START)) + 0.2
    slope = 1 / (1 + math.exp(3 * -0.2))
    clamp = {"outer_steps": 1, "inner_steps": 1, "forget_margin": margin, "forget_sharpness": 3.0, "penalty_weight": 0}
    for rule, length in (("normalized", 0.01 * slope), ("sgd", 0.01 * slope * float(START.norm()))):
        # The outer step is negligible.
        run = make_run(bowl, **clamp, inner_update=rule, inner_lr=0.01, outer_lr=1e-12)
        (record,) = run.rounds()
        moved = run.vectors()["theta"][0] - START
        assert float(moved.norm()) == pytest.approx(length, rel=1e-6)
        assert float(moved @ START / START.norm()) == pytest.approx(length, rel=1e-6)
        assert record.unforgotten_weight is not None
        assert 0 < record.unforgotten_weight < slope


def test_the_ascent_does_not_move_a_forgotten_set() -> None:
    margin = float(bowl(START)) / 2
    run = make_run(
        bowl, outer_steps=1, inner_steps=20, inner_update="normalized", inner_lr=1.0, outer_lr=1e-12,
        forget_margin=margin, forget_sharpness=200.0, penalty_weight=0,
    )  # fmt: skip
    (record,) = run.rounds()
    assert record.unforgotten_weight == pytest.approx(0, abs=1e-12)
    assert float((run.vectors()["theta"][0] - START).norm()) < 1e-9


def test_a_run_stops_at_a_stationary_point() -> None:
    run = make_run(
        outer_steps=500, inner_steps=5, inner_lr=0.1, outer_lr=1e-3, penalty_weight=0, stationarity_tolerance=1e-2
    )
    records = list(run.rounds())
    assert run.stationary
    assert len(records) < 500
    assert records[-1].phi_norm <= 1e-2 < records[-2].phi_norm


def test_a_loss_that_is_not_finite_ends_the_run_and_the_error_names_the_step() -> None:
    run = make_run(lambda x: torch.log(x).sum(), outer_steps=2, inner_steps=1)
    with pytest.raises(NonFiniteLossError, match=r"Outer step 1 of 2 failed because a loss became nan: lower"):
        list(run.rounds())


def test_a_similarity_weight_without_effect_warns() -> None:
    run = make_run(outer_steps=1, inner_steps=1, similarity_weight=0.1, similarity_threshold=0.99)
    with pytest.warns(UserWarning, match="similarity_weight 0.1 had no effect"):
        list(run.rounds())


@pytest.mark.parametrize(
    ("derivative", "evaluations", "checks"), [("forward", 4 * 3 + 12, 2 + 8), ("central", 6 * 3 + 18, 4 + 12)]
)
def test_a_run_costs_the_stated_number_of_gradient_evaluations(derivative: str, evaluations: int, checks: int) -> None:
    """With an open hinge, ∇Φ costs 4 (forward) or 6 (central), and an outer step 12 or 18. Here T = 3.

    The first difference inside ∇Φ, and the first difference of ∇Φ, are computed once more with the double step.
    """
    run = make_run(outer_steps=2, inner_steps=3, similarity_weight=0.1, derivative=derivative, inner_lr=1e-3)
    list(run.rounds())
    assert run._engine.cost_tracker.gradient_evaluations == 2 * evaluations + checks


def test_with_a_closed_hinge_a_run_costs_less() -> None:
    run = make_run(outer_steps=1, inner_steps=3, similarity_weight=0.1, similarity_threshold=1.0, inner_lr=1e-3)
    with warnings.catch_warnings(action="ignore"):
        list(run.rounds())
    assert run._engine.cost_tracker.gradient_evaluations == 3 * 2 + 4 + 2


def test_between_two_regularized_rounds_a_run_is_a_first_order_run() -> None:
    """A recursion in NumPy, with the closed forms of the projection and of its penalty for quadratic losses."""
    rho, inner, outer = 0.3, 0.05, 0.02
    run = make_run(
        outer_steps=5, inner_steps=2, inner_lr=inner, outer_lr=outer, decorrelation="projection", derivative="exact",
        penalty_weight=rho, regularization_interval=3, diagnostics_every=100,
    )  # fmt: skip
    list(run.rounds())
    x, h_f, h_r = START.numpy().copy(), -CURVATURE_F.numpy(), CURVATURE_R.numpy()
    for step in range(5):
        regularized = step in (0, 3)
        for _ in range(2):
            g_f, g_r = h_f * x, h_r * x
            x = x + inner * (g_f - (g_f @ g_r / (g_r @ g_r) * g_r if regularized else 0))
        g_f, g_r = h_f * x, h_r * x
        share = g_f @ g_r / (g_r @ g_r)
        direction = g_f - share * g_r
        x = x - outer * (g_r + (2 * rho * (h_f - share * h_r) * direction if regularized else 0))
    np.testing.assert_allclose(run.vectors()["theta"][0].numpy(), x, rtol=1e-9, atol=1e-12)
    # Two gradients in each inner step of the rounds 1 and 4, one in the others; 2 + 6 evaluations in their outer steps,
    # one in the others, and two in the last, which is recorded.
    products = run._engine.cost_tracker.gradient_evaluations - (2 * 2 * 2 + 3 * 2 + 2 * 2 + 2 + 2)
    assert products == 2 * 2 * HVP_COST


def test_the_record_of_a_round_between_is_that_of_a_first_order_round() -> None:
    """Six evaluations for the direction of a regularized round, and two for the point of a recorded round between."""
    recorded = {"outer_steps": 4, "inner_steps": 0, "penalty_weight": 0.0, "diagnostics_every": 1}
    run = make_run(similarity_weight=0.1, regularization_interval=2, derivative="exact", **recorded)
    records = list(run.rounds())
    assert [record.hinge_open for record in records] == [True, False, True, False]
    assert run._engine.cost_tracker.gradient_evaluations == 2 * (2 + 2 * HVP_COST) + 2 * 2
    # Without an inner step and without a penalty, both runs go the same way.
    assert records[1::2] == list(make_run(**recorded).rounds())[1::2]


def test_what_a_round_between_records_does_not_tell_that_decorrelation_acted() -> None:
    settings = {"decorrelation": "projection", "regularization_interval": 2, "diagnostics_every": 1}

    def tilted(x: Tensor) -> Tensor:
        return bowl(x) + 3 * x[1]

    # Each inner step doubles x, so S rises to 0.77 in the first round and to 0.95 in the second.
    run = make_run(
        bowl, tilted, outer_steps=2, inner_steps=1, inner_lr=1.0, outer_lr=1e-9, penalty_weight=0.0,
        similarity_threshold=0.9, **settings,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="method.decorrelation projection had no effect"):
        records = list(run.rounds())
    assert records[0].similarity < 0.9 < records[1].similarity


def test_stationarity_is_tested_where_phi_acts_and_costs_nothing_between() -> None:
    settings = {"decorrelation": "projection", "penalty_weight": 0.0, "inner_lr": 0.1, "outer_lr": 1e-3}
    run = make_run(
        outer_steps=500, inner_steps=1, regularization_interval=5, stationarity_tolerance=1e-2, diagnostics_every=3,
        **settings,
    )  # fmt: skip
    records = list(run.rounds())
    assert run.stationary
    assert records[-1].outer_step % 5 == 1
    assert records[-1].phi_norm <= 1e-2
    tested = [record for record in records[:-1] if record.outer_step % 5 == 1]
    assert all(record.phi_norm > 1e-2 for record in tested)
    between = [record for record in records if record.outer_step % 5 != 1]
    # A recorded round between has ‖g_f‖, and the others have none.
    assert {record.phi_norm is None for record in between} == {record.outer_step % 3 != 1 for record in between}
    assert all(record.phi_norm in (None, record.forget_gradient_norm) for record in between)


def test_every_round_is_regularized_unless_an_interval_says_otherwise() -> None:
    assert [OfmuConfig().regularizes(step) for step in range(3)] == [True] * 3
    assert [OfmuConfig(regularization_interval=2).regularizes(step) for step in range(4)] == [True, False] * 2


@pytest.mark.parametrize("rule", ["adamw", "adamw_8bit"])
def test_a_restored_run_continues_the_same_trajectory(rule: str) -> None:
    settings = {"outer_steps": 6, "inner_steps": 2, "inner_update": rule, "outer_update": rule}
    complete = list(make_run(**settings).rounds())
    first = make_run(**settings)
    rounds = first.rounds()
    for _ in range(3):
        next(rounds)
    saved = {name: [part.clone() for part in vector] for name, vector in first.vectors().items()}
    second = make_run(**settings)
    second.restore(first.state(), saved)
    rest = list(second.rounds())
    assert [record.outer_step for record in rest] == [4, 5, 6]
    assert rest == complete[3:]
    assert math.isfinite(rest[-1].phi_norm)


def test_a_variant_sets_what_is_left_out() -> None:
    first = OfmuConfig.model_validate({"variant": "first_order"})
    assert (first.decorrelation, first.penalty_weight, first.uses_hvp) == ("none", 0.0, False)
    own = OfmuConfig.model_validate({"variant": "first_order", "penalty_weight": 0.5})
    assert (own.decorrelation, own.penalty_weight) == ("none", 0.5)
    assert OfmuConfig.model_validate(first.model_dump()) == first
