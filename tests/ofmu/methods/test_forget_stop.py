"""The stop of forgetting, against a problem with a known solution and multiplier, and against runs without a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from method_specs import short_spec
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.methods.ofmu.checked import CheckedDerivatives
from ofmu.methods.registry import method_class, method_config
from ofmu.testing import RunOutcome, run
from ofmu.testing.task import MemoryTask

ANCHOR = np.array([0.36, 0.48])  # of length 0.6
LEVEL = 2.0


class Point(nn.Module):
    """A model that is nothing but its parameters θ, a point of the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.theta * 1.0


class HalfSquaredDistance:
    """½‖θ − row‖²."""

    def size(self, row: Tensor) -> int:
        return 1

    def tokens(self, row: Tensor) -> int:
        return 1

    def row_means(self, module: Callable[..., Any], rows: Sequence[Tensor], device: torch.device) -> Tensor:
        theta = module()
        return torch.stack([(theta - row).square().sum() / 2 for row in rows])

    def total(self, module: Callable[..., Any], rows: Sequence[Tensor], device: torch.device) -> Tensor:
        return self.row_means(module, rows, device).sum()


def plane(**settings: Any) -> Any:
    """Return gradient difference on: minimise ½‖θ‖² subject to ½‖θ − a‖² ≥ ℓ, from θ = 0."""
    forget = [torch.tensor(ANCHOR) for _ in range(3)]
    task = MemoryTask("language", forget, [torch.zeros(2, dtype=torch.float64)], HalfSquaredDistance())
    section = {"name": "graddiff", "update": "sgd", "lr": 0.2, "min_forget_loss": LEVEL, **settings}
    engine = TorchEngine(Point(), CostTracker())
    return build_method(Context(engine, task, seed=0), method_config(section).model_validate(section))


@pytest.mark.slow
def test_the_run_ends_at_the_constrained_minimum_with_the_multiplier_of_the_optimality_conditions() -> None:
    method = plane(steps=600, round_steps=600, stop_penalty=1.0, multiplier_step=0.5)
    (record,) = method.rounds()
    length = np.linalg.norm(ANCHOR)
    # θ* lies opposite a on the circle ½‖θ − a‖² = ℓ, and θ* = λ* (θ* − a).
    solution = -(np.sqrt(2 * LEVEL) - length) * ANCHOR / length
    np.testing.assert_allclose(method.engine.space.masters()[0].numpy(), solution, rtol=1e-6)
    assert record.multiplier == pytest.approx(1 - length / np.sqrt(2 * LEVEL), rel=1e-6)


@pytest.mark.parametrize(("penalty", "dual"), [(1.0, 1.0), (3.0, 0.2), (0.5, 0.0)])
def test_the_steps_are_those_of_the_augmented_lagrangian(penalty: float, dual: float) -> None:
    method = plane(steps=40, round_steps=1, stop_penalty=penalty, multiplier_step=dual, forget_weight=0.9)
    theta, multiplier = np.zeros(2), 0.0
    for record in method.rounds():
        short = LEVEL - np.sum((theta - ANCHOR) ** 2) / 2
        # ∇L_A = θ − w (θ − a) with the penalty parameter p = μ/ℓ.
        weight = max(0.0, multiplier + penalty / LEVEL * short)
        multiplier = max(0.0, multiplier + dual / LEVEL * short)
        theta = theta - 0.2 * (theta - 0.9 * weight * (theta - ANCHOR))
        np.testing.assert_allclose(method.engine.space.masters()[0].numpy(), theta, rtol=1e-9, atol=1e-12)
        assert (record.stop_weight, record.multiplier) == pytest.approx((weight, multiplier), rel=1e-9)
        assert record.measured_forget_loss == pytest.approx(LEVEL - short, rel=1e-9)


def test_a_switch_counts_one_forward_pass_per_step_and_a_gradient_only_below_the_level() -> None:
    method = plane(steps=60, round_steps=1, forget_stop="switch", retain_weight=0.5, forget_weight=1.5)
    records = list(method.rounds())
    below = sum(record.measured_forget_loss < LEVEL for record in records)
    assert 0 < below < 60
    assert [record.forget_loss is not None for record in records] == [r.measured_forget_loss < LEVEL for r in records]
    assert {(record.stop_weight, record.multiplier) for record in records} == {(0.0, None), (1.0, None)}
    costs = method.engine.cost_tracker
    assert (costs.gradient_evaluations, costs.forward_evaluations) == (60 + below, 60)


def same_weights(found: RunOutcome, wanted: RunOutcome) -> bool:
    return all(torch.equal(found.parameters[name], wanted.parameters[name]) for name in wanted.parameters)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("graddiff", "language", {}),
        ("npo", "language", {"separate_moments": True, "conflict": "project", "update": "sgd"}),
        ("klmin", "language", {}),
        ("rmu", "language", {}),
        ("idk", "language", {"retain_loss": "kl"}),
        ("boundaryexpand", "vision", {"retain_weight": 1.0}),
    ],
)
def test_a_level_that_the_target_meets_leaves_a_run_on_the_retain_rows(
    name: str, kind: Any, settings: dict[str, Any]
) -> None:
    stopped = run(short_spec(name, kind, min_forget_loss=1e-3, **settings))
    retain = run(short_spec(name, kind, forget_weight=0.0, **settings))
    assert same_weights(stopped, retain)
    assert stopped.gradient_evaluations == retain.gradient_evaluations
    assert stopped.forward_evaluations == retain.forward_evaluations + len(stopped.records)
    assert not same_weights(retain, run(short_spec(name, kind, **settings)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["graddiff", "npo", "ofmu"])
def test_a_switch_that_is_never_reached_changes_no_bit(name: str) -> None:
    settings = {"decorrelation": "none", "penalty_weight": 0.0} if name == "ofmu" else {}
    assert same_weights(
        run(short_spec(name, min_forget_loss=1e3, forget_stop="switch", **settings)), run(short_spec(name, **settings))
    )


@pytest.mark.slow
def test_the_ascent_of_ofmu_is_switched_off_and_its_rate_has_the_weight() -> None:
    first_order = {"decorrelation": "none", "penalty_weight": 0.0, "diagnostics_every": 1, "forget_margin": None}
    off = run(short_spec("ofmu", min_forget_loss=1e-3, **first_order))
    # Normalised steps of this length change no bit of a weight.
    without = run(short_spec("ofmu", **{**first_order, "inner_lr": 1e-30}))
    assert same_weights(off, without)
    inner_steps = 2 * len(off.records)
    assert off.gradient_evaluations == without.gradient_evaluations - inner_steps
    assert off.forward_evaluations == without.forward_evaluations + inner_steps
    assert [record["stop_weight"] for record in off.records] == [0.0, 0.0]

    once = {**first_order, "outer_steps": 1, "inner_steps": 1}
    halved = run(short_spec("ofmu", **once, min_forget_loss=8.0, stop_penalty=2.0))
    weight = halved.records[0]["stop_weight"]
    assert 0.5 < weight < 1.5
    assert same_weights(halved, run(short_spec("ofmu", **{**once, "inner_lr_scale": weight})))


def test_ofmu_measures_the_rows_that_the_step_ascends(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Sequence[Any]] = []
    ascended: list[Sequence[Any]] = []
    row_values, ascent = TorchEngine.row_values, CheckedDerivatives.ascent

    def measuring(self: Any, compute: Any, rows: Sequence[Any], tokens: int) -> list[float]:
        measured.append(rows)
        return row_values(self, compute, rows, tokens)

    def ascending(self: Any, forget_rows: Sequence[Any], retain_rows: Sequence[Any], *, decorrelates: bool) -> Any:
        ascended.append(forget_rows)
        return ascent(self, forget_rows, retain_rows, decorrelates=decorrelates)

    monkeypatch.setattr(TorchEngine, "row_values", measuring)
    monkeypatch.setattr(CheckedDerivatives, "ascent", ascending)
    # The outer step draws forget rows too, so the second round begins elsewhere in the order of the rows.
    settings = {"decorrelation": "none", "penalty_weight": 0.0, "outer_steps": 3}
    run(short_spec("ofmu", min_forget_loss=1e3, forget_stop="switch", **settings))
    assert len(ascended) == 6
    assert measured == ascended


@pytest.mark.parametrize(
    ("name", "settings", "note"),
    [
        ("npo", {"stop_penalty": 2.0}, "method.stop_penalty has no effect: method.min_forget_loss is not set"),
        ("ofmu", {"forget_stop": "switch"}, "method.forget_stop has no effect: method.min_forget_loss is not set"),
        (
            "npo",
            {"min_forget_loss": 2.0, "forget_stop": "switch", "multiplier_step": 0.3},
            "method.multiplier_step has no effect: method.forget_stop is 'switch'",
        ),
        ("blur", {"min_forget_loss": 2.0}, "min_forget_loss has no effect: the method's forget term has no weight"),
        ("pdu", {"min_forget_loss": 2.0}, "min_forget_loss has no effect: the method's forget term has no weight"),
        ("finetune", {"min_forget_loss": 2.0}, "min_forget_loss has no effect: method.forget_weight is 0"),
        ("ofmu", {"min_forget_loss": 4.0}, "ascent of a row ends at method.forget_margin 3.0"),
    ],
)
def test_a_setting_of_the_stop_without_effect_is_named(name: str, settings: dict[str, Any], note: str) -> None:
    notes = method_class(name).Config(**settings).ineffective()
    assert any(note in sentence for sentence in notes), notes
    assert len(notes) == 1


@pytest.mark.slow
def test_a_method_without_a_forget_weight_of_its_own_runs_as_if_there_was_no_level() -> None:
    for name in ("pdu", "blur", "finetune"):
        level = run(short_spec(name, min_forget_loss=1e-3))
        assert level.records == run(short_spec(name)).records
