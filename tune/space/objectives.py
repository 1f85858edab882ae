"""What a search minimises or maximises: names, directions, and the worst value of each objective."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ofmu.data.kinds import TRAITS, TaskKind
from ofmu.errors import ConfigError, nearest_name
from ofmu.evaluation.metrics.custom import is_custom_metric, load_custom_metric
from ofmu.evaluation.metrics.registry import REFERENCE, REGISTRY
from ofmu.io.plugins import reads_results_only

Direction = Literal["min", "max"]

WORST: dict[str, float | None] = {
    name: metric.worst for name, metric in REGISTRY.items() if metric.direction != "target"
}
"""The known objectives, each with the worst value that its definition allows. None: the objective is unbounded."""

LOST_SHARE = 0.05
"""Share of the target's utility below which a model counts as one that knows nothing."""

COST_METRICS = ("gradient_evaluations", "tokens", "seconds", "peak_memory_bytes")
"""Objectives that the run itself measures. No evaluation is needed for them."""

NEEDS_REFERENCE = frozenset(name for name, metric in REGISTRY.items() if REFERENCE in metric.needs)
"""Objectives that compare with the retrained model."""


def value_range(name: str) -> float | None:
    """Return the distance between the highest and the lowest value of a metric; None if its definition sets none."""
    info = REGISTRY.get(name)
    return None if info is None or info.lowest is None or info.highest is None else info.highest - info.lowest


def default_objectives(has_reference: bool, kind: TaskKind = "language") -> dict[str, Direction]:
    """Return the objectives of a search that names none.

    Args:
        has_reference: whether there is a retrained model to compare with.
        kind: what is unlearned.
    """
    traits = TRAITS[kind]
    return dict(traits.objectives if has_reference else traits.objectives_without_reference)


def check_objectives(objectives: Mapping[str, str], has_reference: bool) -> None:
    """Check the names and the number of objectives.

    A name such as ``my_package.my_module:my_function`` is a function of the user. This check imports it, unless only
    results are read.

    Raises:
        ConfigError: a name is unknown, there are not two or three objectives, or one needs a missing reference.
    """
    for name in objectives:
        if is_custom_metric(name):
            if not reads_results_only():
                load_custom_metric(name)
        elif name not in WORST:
            raise ConfigError(f"Unknown objective '{name}' in search.objectives: {nearest_name(name, WORST)}")
        if name in NEEDS_REFERENCE and not has_reference:
            raise ConfigError(
                f"The objective '{name}' compares with a retrained model, but reference.source is 'none': "
                "search extraction_strength (unlearning_accuracy for images) instead, or give a reference"
            )
    if not 2 <= len(objectives) <= 3:
        raise ConfigError(f"A search takes two or three objectives, but search.objectives has {len(objectives)}")


def missing_objective_sentence(name: str, reason: str) -> str:
    """Return what is said of an objective that trials cannot compute."""
    return (
        f"The objective '{name}' cannot be computed on this data ({reason}): "
        "name others in search.objectives, such as extraction_strength and model_utility"
    )


def lost_utility(values: Mapping[Any, Any], objectives: Iterable[str], target: Mapping[Any, Any]) -> list[str]:
    """Return the objectives after the first one of which nothing is left. The first is what is forgotten.

    Nothing is left at the worst possible value. If that is 0, nothing is left below :data:`LOST_SHARE` of the target's
    value either.

    Args:
        values: a trial's metrics.
        objectives: the objectives in order.
        target: the metrics of the untouched target; empty if they are unknown.
    """
    return [name for name in list(objectives)[1:] if _is_lost(values[name], WORST.get(name), target.get(name))]


def _is_lost(value: float, worst: float | None, of_target: float | None) -> bool:
    return worst is not None and (value == worst or (worst == 0 and 0 <= value < LOST_SHARE * (of_target or 0.0)))


def objective_values(
    metrics: Mapping[str, Any], objectives: Iterable[str], reasons: Mapping[str, str] | None = None
) -> tuple[list[float] | None, str | None]:
    """Return a trial's objectives in order, or None with the reason why the trial has none.

    Every value must be a finite number. Optuna stores a trial with an infinite value as complete, and that trial
    would distort the front.

    Args:
        metrics: the trial's metrics.
        objectives: the objectives' names.
        reasons: why the evaluation left a metric out, by the metric's name.
    """
    values = []
    for name in objectives:
        value = metrics.get(name)
        if value is None:
            why = (reasons or {}).get(name)
            return None, f"the run reported no {name}{f': {why}' if why else ''}"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None, f"{name} is {value}, not a finite number"
        values.append(float(value))
    return values, None
