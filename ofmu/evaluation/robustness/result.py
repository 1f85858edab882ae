"""The result of one attack, or of the alignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessResult:
    """The metrics of one attack or of the alignment, and what the metrics were computed from."""

    metrics: Mapping[str, float | None]
    """Value of each metric. None: the metric could not be computed."""
    reasons: Mapping[str, str]
    """Reason of each metric that is None."""
    details: Mapping[str, Any]
    """Curves, layers and counts for the report, as plain JSON values."""
