"""What a search minimises or maximises: names, directions, and the worst value each can take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from ofmu.data.kinds import TRAITS, TaskKind
from ofmu.errors import ConfigError, nearest_name
from ofmu.evaluation.metrics.custom import is_custom_metric, load_custom_metric
from ofmu.evaluation.metrics.registry import REFERENCE, REGISTRY

Direction = Literal["min", "max"]

WORST: dict[str, float | None] = {
    name: metric.worst for name, metric in REGISTRY.items() if metric.direction != "target"
}
"""Known objectives with the worst value that their definition allows; None: unbounded."""

COSTS = frozenset({"gradient_evaluations", "tokens", "seconds", "peak_memory_bytes"})
"""Objectives that a run's ledger gives and no evaluation."""

NEEDS_REFERENCE = frozenset(name for name, metric in REGISTRY.items() if REFERENCE in metric.needs)


def default_objectives(has_reference: bool, kind: TaskKind = "language") -> dict[str, Direction]:
    """Return the objectives of a search that names none, for a kind of task."""
    traits = TRAITS[kind]
    return dict(traits.objectives if has_reference else traits.objectives_without_reference)


def refuse_unusable(objectives: Mapping[str, str], has_reference: bool) -> None:
    """Raise ConfigError for an unknown name, a count that is not two or three, or a missing reference.

    A name such as ``my_package.my_module:my_function`` is a function of the user's own; it is imported here.
    """
    for name in objectives:
        if is_custom_metric(name):
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


def objective_values(
    metrics: Mapping[str, Any], objectives: Mapping[str, Direction], reasons: Mapping[str, str] | None = None
) -> tuple[list[float] | None, str | None]:
    """Return the objectives' values in order, or None with the reason why a trial has none.

    A value must be a finite number: Optuna accepts infinities as complete, and they would bend the front.
    ``reasons`` says of metrics that the evaluation left out why it did.
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
