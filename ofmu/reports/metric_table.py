"""The metrics of one model as groups of rows: its values beside the target's and the retrained model's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ofmu.evaluation.config import LM_EVAL_PREFIX
from ofmu.evaluation.metrics.registry import GROUPS, REGISTRY, MetricInfo

_COST = "Cost"
_OWN, _LM_EVAL = "Your metrics", "lm-evaluation-harness"


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric of several models."""

    name: str
    better: str
    """Which values are better, in words."""
    meaning: str
    values: tuple[float | None, ...]
    """One per model."""
    places: tuple[float | None, ...]
    """The values as shares of the metric's range, 0 to 1. None: no value, or a range without a bound."""


@dataclass(frozen=True, kw_only=True)
class MetricGroup:
    """The metrics of one kind."""

    title: str
    rows: tuple[MetricRow, ...]


def metric_groups(models: Sequence[Mapping[str, float | None]]) -> list[MetricGroup]:
    """Return the metrics that at least one model has, without costs.

    Args:
        models: the metrics of each model. The first model is the one that the page is about.
    """
    known = [
        MetricGroup(title=title, rows=tuple(_rows(infos, models))) for title, infos in GROUPS.items() if title != _COST
    ]
    own = {name: tuple(model.get(name) for model in models) for name in models[0] if name not in REGISTRY}
    custom = [
        MetricRow(name=name, better="", meaning="", values=values, places=(None,) * len(models))
        for name, values in own.items()
        if any(value is not None for value in values)
    ]
    tasks = [row for row in custom if row.name.startswith(LM_EVAL_PREFIX)]
    others = [row for row in custom if not row.name.startswith(LM_EVAL_PREFIX)]
    more = (MetricGroup(title=_LM_EVAL, rows=tuple(tasks)), MetricGroup(title=_OWN, rows=tuple(others)))
    return [group for group in (*known, *more) if group.rows]


def missing_metrics(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the metrics that could not be computed, by reason."""
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        found.setdefault(reason, []).append(name)
    return found


def _rows(infos: Sequence[MetricInfo], models: Sequence[Mapping[str, float | None]]) -> Iterator[MetricRow]:
    for info in infos:
        values = tuple(model.get(info.name) for model in models)
        if any(value is not None for value in values):
            places = tuple(_place(info, value) for value in values)
            meaning = info.meaning.replace("`", "")
            yield MetricRow(name=info.name, better=info.better, meaning=meaning, values=values, places=places)


def _place(info: MetricInfo, value: float | None) -> float | None:
    if value is None or not math.isfinite(value) or info.lowest is None or info.highest is None:
        return None
    return min(max((value - info.lowest) / (info.highest - info.lowest), 0.0), 1.0)
