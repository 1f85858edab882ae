"""What a search minimises or maximises: names, directions, and the worst value each can take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from ofmu.errors import ConfigError, nearest_name

Direction = Literal["min", "max"]

WORST: dict[str, float | None] = {
    "ks_statistic": 1.0,
    "log10_forget_quality": None,
    "forget_quality": 0.0,
    "forget_truth_ratio": 0.0,
    "model_utility": 0.0,
    "extraction_strength": 1.0,
    "exact_memorization": 1.0,
    "forget_probability": 1.0,
    "forget_rouge": 1.0,
    "retain_probability": 0.0,
    "retain_rouge": 0.0,
    "forget_letter_accuracy": 1.0,
    "forget_choice_accuracy": 1.0,
    "utility_letter_accuracy": 0.0,
    "utility_choice_accuracy": 0.0,
    "unlearning_accuracy": 0.0,
    "remaining_accuracy": 0.0,
    "testing_accuracy": 0.0,
    "mia_efficacy": 0.0,
    "average_gap": 100.0,
    "unlearning_accuracy_gap": 100.0,
    "remaining_accuracy_gap": 100.0,
    "testing_accuracy_gap": 100.0,
    "mia_efficacy_gap": 100.0,
    "gradient_evaluations": None,
    "tokens": None,
    "seconds": None,
    "peak_memory_bytes": None,
}
"""Known objectives with the worst value that their definition allows; None: unbounded."""

NEEDS_REFERENCE = frozenset({"ks_statistic", "log10_forget_quality", "forget_quality"}) | {
    name for name in WORST if name.endswith("_gap")
}


def default_objectives(has_reference: bool, kind: str = "language") -> dict[str, Direction]:
    """Return the two objectives of a search that names none, by the kind of its task."""
    if kind == "vision":
        forgotten: dict[str, Direction] = (
            {"unlearning_accuracy_gap": "min"} if has_reference else {"unlearning_accuracy": "max"}
        )
        return {**forgotten, "testing_accuracy": "max"}
    forgetting = "ks_statistic" if has_reference else "extraction_strength"
    return {forgetting: "min", "model_utility": "max"}


def refuse_unusable(objectives: Mapping[str, str], has_reference: bool) -> None:
    """Raise ConfigError for an unknown name, a count that is not two or three, or a missing reference."""
    for name in objectives:
        if name not in WORST:
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
