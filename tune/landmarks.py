"""The two runs every search starts with: the untouched target, and the paper's setting.

Both may lie outside the searched space, while NSGA-II and GP learn only from trials whose parameters lie in it:
so the study is given the nearest parameters inside the space, and what really ran stands in ``overrides``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tune.space import Space, fixed_values, is_whole

if TYPE_CHECKING:
    from tune.config import Parameter, SearchConfig

TARGET = "target"
PAPER = "paper"
SEARCHED = "searched"

TARGET_SETTINGS: dict[str, Any] = {"method.outer_steps": 0}

PAPER_SETTINGS: dict[str, Any] = {
    "method.inner_update": "sgd",
    "method.outer_update": "sgd",
    "method.similarity_threshold": -1.0,
    "method.inner_steps": 5,
    "method.outer_steps": 10,
    "method.similarity_weight": 0.1,
    "method.penalty_weight": 0.1,
    "method.penalty_growth": 1.5,
    "method.penalty_max": 10.0,
    "method.inner_lr": 1e-2,
    "method.outer_lr": 1e-2,
}
"""Algorithm 1 of arXiv 2509.22483: plain gradient steps, T = 5, the full decorrelation term, ρ increasing.

The paper states neither learning rate, nor β, nor ρ's schedule: these numbers are this project's choice.
"""


def overrides_of(role: str, space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trial really runs: the drawn settings, or a landmark's own."""
    if role == TARGET:
        return {**fixed_values(space), **TARGET_SETTINGS}
    if role == PAPER:
        return {**fixed_values(space), **PAPER_SETTINGS}
    return dict(drawn)


def stand_ins(config: SearchConfig) -> dict[str, dict[str, Any]]:
    """Return, per landmark, the parameters inside the space under which the study stores it."""
    base = config.shared_settings()

    def paper(key: str) -> Any:
        section, name = key.split(".")
        return PAPER_SETTINGS.get(key, base[section][name])

    searched = {key: spec for key, spec in config.search.space.items() if spec.kind != "fixed"}
    return {
        TARGET: {key: _gentlest(key, spec) for key, spec in searched.items()},
        PAPER: {key: _nearest(key, spec, paper(key)) for key, spec in searched.items()},
    }


def _gentlest(key: str, parameter: Parameter) -> Any:
    if parameter.choices is not None:
        return parameter.choices[0]
    # A high threshold closes the hinge; every other setting does less when it is low.
    bound = parameter.high if key == "method.similarity_threshold" else parameter.low
    return _nearest(key, parameter, bound)


def _nearest(key: str, parameter: Parameter, value: Any) -> Any:
    if parameter.choices is not None:
        return value if value in parameter.choices else parameter.choices[0]
    low, high = parameter.low or 0.0, parameter.high or 0.0
    inside = min(max(float(value), low), high) if isinstance(value, int | float) else low
    whole = is_whole(key, parameter)
    step = parameter.step or (1.0 if whole else None)
    if step is not None and not parameter.log:
        steps = min(round((inside - low) / step), int((high - low) / step + 1e-9))
        inside = low + steps * step
    return round(inside) if whole else inside
