"""What OFMU says of its passes before a run, beside what runs with a changing hinge count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from method_specs import short_spec
from ofmu.methods.ofmu.derivatives import Derivatives
from ofmu.methods.ofmu.footprint import _MOST_FITTED, passes
from ofmu.methods.ofmu.step_size import FittedStep
from ofmu.testing import run
from ofmu.vectors.base import Vector


def long_fit(
    space: Any, difference: Callable[[float], Vector], size: Any, start: float, at_start: Vector, **_: Any
) -> FittedStep:
    """Compute as many differences as a fit takes at most, and keep the first step."""
    for _ in range(_MOST_FITTED):
        difference(start)
    return FittedStep(start, 0.0, at_start)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"diagnostics_every": 1},
        {"stationarity_tolerance": 1e-12},
        {"penalty_weight": 0.0, "stationarity_tolerance": 1e-12},
        {"decorrelation": "projection", "diagnostics_every": 2},
        {"decorrelation": "none", "stationarity_tolerance": 1e-12},
        {"decorrelation": "none", "penalty_weight": 0.0, "stationarity_tolerance": 1e-12, "diagnostics_every": 4},
    ],
    ids=str,
)
def test_a_run_that_regularizes_every_third_round_takes_the_declared_passes(settings: dict[str, Any]) -> None:
    always_open = {"similarity_threshold": -1.0, "similarity_weight": 0.05}
    spec = short_spec("ofmu", outer_steps=5, inner_steps=1, regularization_interval=3, **always_open, **settings)
    least, _ = passes(spec.method)
    assert run(spec).gradient_evaluations == least.gradient_evaluations


@pytest.mark.parametrize("decorrelation", ["cosine", "projection"])
def test_a_run_whose_hinge_opens_late_and_whose_fits_are_long_takes_the_most_passes_or_fewer(
    decorrelation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    real = Derivatives._phi_gradient_at

    def opening(self: Any, point: Any, *, exceeds: bool, weight: float) -> Any:
        seen.append(len(seen) > 1)
        return real(self, point, exceeds=seen[-1], weight=weight)

    monkeypatch.setattr(Derivatives, "_phi_gradient_at", opening)
    monkeypatch.setattr("ofmu.methods.ofmu.derivatives.fit_step", long_fit)
    spec = short_spec("ofmu", outer_steps=3, inner_steps=1, decorrelation=decorrelation)
    outcome = run(spec)
    assert [record["hinge_open"] for record in outcome.records] == [False, True, True]
    least, most = passes(spec.method)
    assert least.gradient_evaluations < outcome.gradient_evaluations <= most.gradient_evaluations
