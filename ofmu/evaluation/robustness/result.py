"""The result of one attack, of the alignment, or of the divergence from the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ofmu.evaluation.metrics.summary import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessResult:
    """The metrics of one part, and what the metrics were computed from."""

    metrics: Mapping[str, float | None]
    """Value of each metric. None: the metric could not be computed."""
    reasons: Mapping[str, str]
    """Reason of each metric that is None."""
    details: Mapping[str, Any]
    """Curves, layers and counts for the report, as plain JSON values."""
    gradient_evaluations: int = 0
    """Gradients of minibatches that it computed."""
    tokens: int = 0
    """Tokens that these gradients read."""


def with_robustness(metrics: Metrics, parts: Mapping[str, RobustnessResult]) -> Metrics:
    """Return the metrics of a model with those of the parts."""
    values, reasons = dict(metrics.values), dict(metrics.reasons)
    for part in parts.values():
        values |= part.metrics
        reasons |= part.reasons
    return replace(metrics, values=values, reasons=reasons)
