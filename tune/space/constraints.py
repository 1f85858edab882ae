"""What a search requires of its points: bounds on metrics, each a number or a share of the untouched target's value.

A trial that keeps all bounds is feasible. The front prefers feasible trials, and so do Optuna's samplers, which read
the violations that are stored with each trial.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, model_validator
from pydantic_core import PydanticCustomError

from ofmu.config.base import Section
from ofmu.errors import ConfigError, nearest_name
from ofmu.evaluation.metrics.custom import is_custom_metric, load_custom_metric
from ofmu.evaluation.metrics.registry import DEPTHS, DIVERGENCES, REGISTRY
from ofmu.io.plugins import reads_results_only
from ofmu.reports.numbers import metric_text
from tune.space.objectives import COST_METRICS

Side = Literal["min", "max"]
_SIDES: Mapping[Side, str] = {"min": "≥", "max": "≤"}
_SHARE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s+of\s+target\s*", re.IGNORECASE)
VIOLATIONS = "constraints:"
"""Optuna stores each violation as a system attribute with this prefix."""


def _parse_bound(value: Any) -> float | str | None:
    """Return a bound as a number, or as a text such as ``0.95 of target``."""
    if value is None or isinstance(value, bool):
        return value
    match = _SHARE.fullmatch(value) if isinstance(value, str) else None
    if match is not None and 0 < float(match[1]) < math.inf:
        return f"{float(match[1]):.12g} of target"
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise PydanticCustomError("no_bound", "this is neither a number nor a share such as '0.95 of target'")
    return number


Bound = Annotated[float | str, BeforeValidator(_parse_bound)]
"""A number, or a text such as ``0.95 of target``."""


class ConstraintConfig(Section):
    """The bounds of one metric."""

    min: Bound | None = None
    """Smallest value that a point may have: a number, or a share of the untouched target's value (0.95 of target)."""
    max: Bound | None = None
    """Largest value that a point may have: a number, or a share of the untouched target's value."""

    @model_validator(mode="after")
    def _check(self) -> ConstraintConfig:
        if self.min is None and self.max is None:
            raise PydanticCustomError("no_bound", "a constraint needs min or max, such as {min: 0.95 of target}")
        if type(self.min) is type(self.max) and self.min is not None and self.max is not None:
            low, high = (float(str(bound).split()[0]) for bound in (self.min, self.max))
            if low > high:
                raise PydanticCustomError("no_value", "no value lies between these bounds")
        return self

    def given(self) -> dict[Side, float | str]:
        """Return the bounds that are set, by side."""
        return {side: bound for side in _SIDES if (bound := getattr(self, side)) is not None}


@dataclass(frozen=True, slots=True)
class Limit:
    """One bound as a number."""

    metric: str
    side: Side
    value: float

    @property
    def key(self) -> str:
        """The name under which a trial stores how far it violates this bound."""
        return f"{self.metric}:{self.side}"

    def __str__(self) -> str:
        return f"{self.metric} {_SIDES[self.side]} {metric_text(self.metric, self.value)}"

    def is_kept(self, value: float) -> bool:
        """Return whether a value keeps the bound."""
        return value >= self.value if self.side == "min" else value <= self.value

    def violation(self, value: float) -> float:
        """Return how far a value violates the bound: at most 0 if it keeps the bound, and at most 1.

        1 is the worst value that the metric's definition allows. So all constraints weigh alike in the sum that a
        sampler takes over them. For a metric without a worst value on that side, such as a divergence, the violation is
        (value − bound) / (|value| + |bound|), which has the same sign and the same limits.
        """
        excess = self.value - value if self.side == "min" else value - self.value
        info = REGISTRY.get(self.metric)
        worst = None if info is None else info.lowest if self.side == "min" else info.highest
        scale = abs(value) + abs(self.value) if worst is None else abs(worst - self.value)
        return excess / scale if scale > 0 else excess


Limits = tuple[Limit, ...]


def check_constraints(constraints: Mapping[str, ConstraintConfig]) -> None:
    """Check the metrics' names, and that each bound can be kept by some value.

    Raises:
        ConfigError: a metric is unknown, a bound lies outside of the values that the metric's definition allows, or a
            share of the target's value says nothing of the metric.
    """
    for name, constraint in constraints.items():
        if is_custom_metric(name):
            if not reads_results_only():
                load_custom_metric(name)
        elif name not in REGISTRY:
            raise ConfigError(f"Unknown metric '{name}' in search.constraints: {nearest_name(name, REGISTRY)}")
        for side, bound in constraint.given().items():
            key = f"search.constraints.{name}.{side}"
            if isinstance(bound, str):
                _check_share(name, key)
                continue
            info = REGISTRY.get(name)
            best = None if info is None else info.highest if side == "min" else info.lowest
            if best is not None and not Limit(name, side, bound).is_kept(best):
                raise ConfigError(f"{key} is {bound:g}, and {name} never {_beyond(side)} {best:g}: give another bound")


def _beyond(side: Side) -> str:
    return "exceeds" if side == "min" else "is below"


def _check_share(name: str, key: str) -> None:
    info = REGISTRY.get(name)
    if name in COST_METRICS or name == "outer_steps_taken":
        reason = "the target costs nothing to make"
    elif name in DIVERGENCES:
        reason = "the target does not diverge from itself"
    elif name in DEPTHS:
        reason = "the target has forgotten nothing"
    elif info is not None and info.lowest != 0:
        reason = f"{name} can be negative"
    else:
        return
    raise ConfigError(f"{key} is a share of the target's value, but {reason}: give a number")


def resolve_limits(
    constraints: Mapping[str, ConstraintConfig], target: Mapping[str, Any]
) -> tuple[Limits, tuple[str, ...]]:
    """Return the bounds as numbers, and the metrics whose target value is needed and not known.

    Args:
        constraints: the section ``search.constraints``.
        target: the known metrics of the untouched target.

    Raises:
        ConfigError: the target's value is 0 or negative, so a share of it says nothing; or no value keeps both bounds
            of a metric.
    """
    limits, unknown = [], []
    for name, constraint in constraints.items():
        for side, bound in constraint.given().items():
            if not isinstance(bound, str):
                limits.append(Limit(name, side, float(bound)))
                continue
            value = target.get(name)
            if value is None or not math.isfinite(value):
                unknown.append(name)
                continue
            if value <= 0:
                raise ConfigError(
                    f"search.constraints.{name}.{side} is a share of the target's value, which is {value:g}: "
                    "give a number"
                )
            limits.append(Limit(name, side, float(bound.split()[0]) * float(value)))
    for low in limits:
        for high in limits:
            if (low.metric, low.side, high.side) == (high.metric, "min", "max") and low.value > high.value:
                raise ConfigError(f"No value keeps both {low} and {high}: change search.constraints.{low.metric}")
    return tuple(limits), tuple(dict.fromkeys(unknown))


def limits_to_json(limits: Limits) -> list[list[Any]]:
    """Return the bounds as JSON values."""
    return [[limit.metric, limit.side, limit.value] for limit in limits]


def limits_from_json(values: Any) -> Limits:
    """Return the bounds that :func:`limits_to_json` wrote.

    Raises:
        ValueError: the values are no bounds.
    """
    try:
        return tuple(Limit(str(name), _side(side), float(value)) for name, side, value in values)
    except TypeError as error:
        raise ValueError("bounds of constraints are damaged") from error


def _side(text: str) -> Side:
    if text not in _SIDES:
        raise ValueError(f"a constraint has no side '{text}'")
    return cast(Side, text)


def violations(metrics: Mapping[str, Any], limits: Limits) -> dict[str, float]:
    """Return how far metrics violate each bound, by :attr:`Limit.key`. Every constrained metric must be a number."""
    return {limit.key: limit.violation(float(metrics[limit.metric])) for limit in limits}


def total_violation(stored: Mapping[str, float]) -> float:
    """Return the sum of the violations above 0. It is 0 for a feasible trial."""
    return sum(value for value in stored.values() if value > 0)


def stored_violations(system_attributes: Mapping[str, Any]) -> dict[str, float]:
    """Return the violations that a trial's system attributes hold; empty for a trial that has none."""
    found = {key: value for key, value in system_attributes.items() if key.startswith(VIOLATIONS)}
    return {key.removeprefix(VIOLATIONS): float(value) for key, value in found.items()}


def broken_sentence(metrics: Mapping[Any, Any], limits: Iterable[Limit]) -> str:
    """Return the bounds that metrics violate, such as ``model_utility 0.61, not ≥ 0.714``; empty if there are none."""
    parts = []
    for limit in limits:
        value = metrics.get(limit.metric)
        if value is not None and value == value and not limit.is_kept(float(value)):
            found, bound = (metric_text(limit.metric, each) for each in (value, limit.value))
            parts.append(f"{limit.metric} {found}, not {_SIDES[limit.side]} {bound}")
    return " and ".join(parts)
