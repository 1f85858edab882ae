"""The records of a front's points that ran again on further seeds: in ``confirmation.json`` and ``compare.json``."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict

from ofmu.config.base import Section
from ofmu.reports.numbers import memory


class Record(Section):
    """A stored record. Three fields are stored under the names of the format ``ofmu-compare/1``."""

    model_config = ConfigDict(populate_by_name=True)


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric over the runs of a point."""

    mean: float
    deviation: float
    """Standard deviation of the sample, with n − 1 in the denominator; NaN for a single run."""
    runs: int
    """Number of runs that have the metric."""

    @property
    def half_length(self) -> float:
        """The deviation, or 0 for a single run: half the length of a bar in a chart."""
        return 0.0 if math.isnan(self.deviation) else self.deviation

    def text(self, metric: str) -> str:
        """Return the mean and the deviation of a metric of this name."""
        if not metric.endswith("_bytes"):
            return str(self)
        return memory(self.mean) if math.isnan(self.deviation) else f"{memory(self.mean)} ± {memory(self.deviation)}"

    def __str__(self) -> str:
        if math.isnan(self.deviation):
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} ± {self.deviation:.2g}"


class SeedRun(Record):
    """One point of a front, run on one seed."""

    seed: int
    directory: str
    """Relative to the run directory. The run's own files hold all metrics and settings."""
    metrics: dict[str, float | None] | None = None
    """Objectives and costs; None if the run failed."""
    reason: str | None = None
    """Why the run failed."""
    violation: str | None = None
    """Which constraints of a comparison the run violates, such as ``model_utility 0.61, not ≥ 0.714``; None: none."""
    retain_draw: int | None = None
    """The draw of the retain rows that the run used; None for a run on all of them."""
    retain_rows_hash: str | None = None
    """SHA-256 (hex) of the drawn rows, which ``metrics.json`` of the run lists."""

    @property
    def valid_metrics(self) -> dict[str, float | None] | None:
        """The metrics of a run that counts; None if the run failed or violates a constraint of a comparison."""
        return self.metrics if self.violation is None else None


class PointRuns(Record):
    """One point of a method's front: the trial that found it, and its runs on all seeds."""

    trial: int
    settings: dict[str, Any]
    runs: tuple[SeedRun, ...]

    def spread(self, name: str) -> Spread | None:
        """Return the spread of a metric over the runs; None if no run has the metric."""
        found = [run.metrics[name] for run in self.runs if run.metrics and run.metrics.get(name) is not None]
        values = [float(value) for value in found if value is not None]
        if not values:
            return None
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan, len(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmedPoint:
    """Two objectives of a trial over the further seeds."""

    trial: int
    x: Spread
    y: Spread


class Confirmation(Record):
    """What ``confirmation.json`` holds: the points of a search's front on further seeds."""

    seeds: tuple[int, ...]
    """The seeds of the minibatches. None of them is the seed on which the points were chosen."""
    points: tuple[PointRuns, ...]

    def spread(self, trial: int, name: str) -> Spread | None:
        """Return the spread of a metric of one trial's runs; None if the trial was not confirmed."""
        found = [point.spread(name) for point in self.points if point.trial == trial]
        return found[0] if found else None

    def plotted(self, x: str, y: str) -> list[ConfirmedPoint]:
        """Return the points that have the two metrics on some seed."""
        spreads = [(point.trial, point.spread(x), point.spread(y)) for point in self.points]
        return [
            ConfirmedPoint(trial=trial, x=on_x, y=on_y)
            for trial, on_x, on_y in spreads
            if on_x is not None and on_y is not None
        ]
