"""HAMU's step, against a solver of its constrained problem and against the gradients of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from method_specs import short_spec
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.methods.hamu import hamu_step
from ofmu.methods.registry import method_class
from ofmu.testing import run, tiny_language_task, tiny_llama


def solved(g_r: Any, g_f: Any, c: float) -> Any:
    """Return the solution by sequential quadratic programming."""
    found = [
        minimize(
            lambda v: g_r @ v,
            start,
            jac=lambda v: g_r,
            method="SLSQP",
            constraints=[
                {"type": "ineq", "fun": lambda v: g_f @ v - c, "jac": lambda v: g_f},
                {"type": "ineq", "fun": lambda v: g_r @ g_r - v @ v, "jac": lambda v: -2 * v},
            ],
            options={"ftol": 1e-14, "maxiter": 500},
        )
        for start in (g_f * c / (g_f @ g_f), -g_r)
    ]
    feasible = [each.x for each in found if g_f @ each.x >= c - 1e-7 and each.x @ each.x <= g_r @ g_r * (1 + 1e-7)]
    return min(feasible, key=lambda v: g_r @ v)


@pytest.mark.parametrize("seed", range(12))
def test_the_step_solves_the_constrained_problem(seed: int) -> None:
    generator = np.random.default_rng(seed)
    g_r, g_f = generator.normal(size=(2, 4))
    c = generator.uniform(0.02, 0.95) * np.linalg.norm(g_r) * np.linalg.norm(g_f)
    step = hamu_step(g_r @ g_r, g_f @ g_f, g_r @ g_f, c)
    v = step.of_kept * g_r + step.of_improved * g_f
    assert g_f @ v >= c * (1 - 1e-12)
    assert v @ v <= (g_r @ g_r) * (1 + 1e-12)
    np.testing.assert_allclose(g_r @ v, g_r @ solved(g_r, g_f, c), rtol=1e-5, atol=1e-6)
    # The retain loss must rise if and only if the hardness is above its limit.
    assert step.limit is not None
    assert (g_r @ v > 0) == (g_r @ g_f > step.limit)


def test_edges_of_the_problem() -> None:
    direct = hamu_step(1.0, 4.25, -2.0, 2.0)
    assert (direct.of_kept, direct.of_improved) == (-1.0, 0.0), "the retain step alone forgets enough"
    infeasible = hamu_step(1.0, 4.0, 0.5, 3.0)
    assert (infeasible.of_kept, infeasible.of_improved, infeasible.limit) == (0.0, 0.75, None)
    parallel = hamu_step(1.0, 4.0, 2.0, 1.0)
    assert (parallel.of_kept, parallel.of_improved) == (0.0, 0.25)
    nothing = hamu_step(1.0, 0.0, 0.0, 1.0)
    assert (nothing.of_kept, nothing.of_improved) == (0.0, 0.0)


@pytest.mark.parametrize("priority", ["forget", "retain"])
def test_a_step_of_a_run_keeps_its_constraint_on_both_losses(priority: str) -> None:
    engine, task = TorchEngine(tiny_llama().double(), CostTracker()), tiny_language_task()
    settings = {"priority": priority, "improvement": 0.03}
    method: Any = build_method(Context(engine, task, seed=5), short_spec("hamu", **settings).method)
    twin: Any = build_method(Context(engine, task, seed=5), short_spec("graddiff").method)
    v = -method.direction().vector[0]
    _, g_f = engine.gradient(task.loss, twin._forget_sampler.draw())
    _, g_r = engine.gradient(task.loss, twin._retain_sampler.draw())
    improved, other = (g_f[0], g_r[0]) if priority == "forget" else (-g_r[0], -g_f[0])
    assert torch.dot(improved, v).item() == pytest.approx(0.03, rel=1e-6) or torch.equal(v, -other)
    assert v.norm().item() == pytest.approx(other.norm().item(), rel=1e-9)
    # In coordinates of the plane of both gradients, which holds the solution.
    plane = torch.linalg.qr(torch.stack([improved, other], dim=1)).Q
    expected = solved(*((plane.T @ gradient).numpy() for gradient in (other, improved)), 0.03)
    assert torch.dot(other, v).item() == pytest.approx(float((plane.T @ other).numpy() @ expected), rel=1e-5)


@pytest.mark.slow
def test_the_hardness_is_recorded_and_may_end_the_run() -> None:
    whole = run(short_spec("hamu", improvement=0.05))
    assert len(whole.records) == 4
    assert all(abs(record["hardness"]) > 0 and record["hardness_limit"] > 0 for record in whole.records)
    stopped = run(short_spec("hamu", improvement=1e3, stop_when_unavoidable=True))
    assert len(stopped.records) == 1
    assert stopped.records[0]["hardness_limit"] is None
    assert len(run(short_spec("hamu", improvement=1e3)).records) == 4


def test_settings_without_effect_are_named() -> None:
    notes = method_class("hamu").Config(retain_weight=2.0, conflict="project", min_forget_loss=1.0).ineffective()
    assert len(notes) == 3
    assert "method.retain_weight has no effect: method.improvement and method.priority decide" in " ".join(notes)
