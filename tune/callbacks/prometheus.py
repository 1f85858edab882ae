"""Publish a search's metrics on Ray's metrics endpoint, which Prometheus scrapes.

Ray adds the prefix ``ray_`` to every name. Every metric has the label ``run``, the search's directory in ASCII:

- ``ofmu_search_trials`` with ``state`` complete, failed, pruned, running or waiting (wanted and not yet started);
- ``ofmu_search_hypervolume``, the current front's hypervolume;
- ``ofmu_search_gradient_evaluations_total``, over all finished trials of all sessions;
- ``ofmu_search_gradient_evaluations_per_second``, of the trials that this session finished.
"""

from __future__ import annotations

from pathlib import Path

from ray.util.metrics import Counter, Gauge

from tune.callbacks.base import Progress, SearchCallback
from tune.study.finished_trial import FinishedTrial

_ENDED = ("complete", "failed", "pruned")


class PrometheusCallback(SearchCallback):
    """Updates the metrics. Without a Ray session that exports metrics, nothing is published."""

    def __init__(self) -> None:
        self._trials = Gauge("ofmu_search_trials", "Trials of the search, by state", ("run", "state"))
        self._hypervolume = Gauge("ofmu_search_hypervolume", "Hypervolume of the search's front", ("run",))
        self._evaluations = Counter(
            "ofmu_search_gradient_evaluations_total", "Gradient evaluations of all finished trials", ("run",)
        )
        self._rate = Gauge(
            "ofmu_search_gradient_evaluations_per_second",
            "Gradient evaluations of the trials that this session finished, over its seconds",
            ("run",),
        )
        self._counted_at_start: frozenset[int] = frozenset()
        self._session_evaluations, self._elapsed_at_start, self._elapsed = 0.0, 0.0, 0.0

    def on_start(self, progress: Progress) -> None:
        """Count the trials of earlier sessions, and publish all metrics."""
        trials = progress.result.trials
        ended = trials[trials["state"].isin(_ENDED)]
        self._counted_at_start = frozenset(int(number) for number in ended["trial"])
        self._elapsed_at_start = self._elapsed = progress.elapsed
        if "gradient_evaluations" in ended:
            self._count(float(ended["gradient_evaluations"].fillna(0.0).sum()), _labels(progress.result.run_dir))
        self.on_progress(progress)

    def on_progress(self, progress: Progress) -> None:
        """Publish the counts and the hypervolume."""
        run = _labels(progress.result.run_dir)
        counts = {
            "complete": progress.complete,
            "failed": progress.failed,
            "pruned": progress.pruned,
            "running": len(progress.running),
            "waiting": max(progress.total - progress.done - len(progress.running), 0),
        }
        for state, count in counts.items():
            self._trials.set(count, run | {"state": state})
        self._hypervolume.set(progress.result.hypervolume, run)
        self._elapsed = progress.elapsed
        self._set_rate(run)

    def on_trial_end(self, trial: FinishedTrial) -> None:
        """Count the trial's gradient evaluations."""
        if trial.number in self._counted_at_start:
            return
        run = _labels(trial.directory.parent.parent)
        evaluations = trial.metrics.get("gradient_evaluations") or 0.0
        self._session_evaluations += evaluations
        self._count(evaluations, run)
        self._set_rate(run)

    def _count(self, evaluations: float, run: dict[str, str]) -> None:
        if evaluations > 0:
            self._evaluations.inc(evaluations, run)

    def _set_rate(self, run: dict[str, str]) -> None:
        seconds = self._elapsed - self._elapsed_at_start
        self._rate.set(self._session_evaluations / seconds if seconds > 0 else 0.0, run)


def _labels(run_dir: Path) -> dict[str, str]:
    # Ray takes ASCII only.
    return {"run": str(run_dir).encode("ascii", "backslashreplace").decode()}
