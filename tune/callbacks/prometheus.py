"""A search's figures on Ray's metrics endpoint, from where Prometheus scrapes them.

Ray puts ``ray_`` before every name. All bear the label ``run``, the search's directory:

- ``ofmu_search_trials`` with ``state`` complete, failed, pruned, running or waiting (asked for and not yet started);
- ``ofmu_search_hypervolume``, of the front so far;
- ``ofmu_search_gradient_evaluations_total``, of all finished trials, those of an earlier session included;
- ``ofmu_search_gradient_evaluations_per_second``, of the trials that this session finished, over its seconds.
"""

from __future__ import annotations

from pathlib import Path

from ray.util.metrics import Counter, Gauge

from tune.callbacks.base import Progress, SearchListener
from tune.study.finished_trial import FinishedTrial

_ENDED = ("complete", "failed", "pruned")


class SearchGauges(SearchListener):
    """Keeps the figures up to date. Where no Ray session exports metrics they go nowhere, at no cost."""

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
        self._known: frozenset[int] = frozenset()
        self._spent_here, self._elapsed_before, self._elapsed = 0.0, 0.0, 0.0

    def on_start(self, progress: Progress) -> None:
        """Take over what earlier sessions did."""
        trials = progress.result.trials
        ended = trials[trials["state"].isin(_ENDED)]
        self._known = frozenset(int(number) for number in ended["trial"])
        self._elapsed_before = self._elapsed = progress.elapsed
        if "gradient_evaluations" in ended:
            self._count(float(ended["gradient_evaluations"].fillna(0.0).sum()), _labels(progress.result.run_dir))
        self.on_progress(progress)

    def on_progress(self, progress: Progress) -> None:
        """Set the counts and the hypervolume anew."""
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
        """Count what the trial spent."""
        if trial.number in self._known:
            return
        run = _labels(trial.directory.parent.parent)
        spent = trial.metrics.get("gradient_evaluations") or 0.0
        self._spent_here += spent
        self._count(spent, run)
        self._set_rate(run)

    def _count(self, spent: float, run: dict[str, str]) -> None:
        if spent > 0:
            self._evaluations.inc(spent, run)

    def _set_rate(self, run: dict[str, str]) -> None:
        seconds = self._elapsed - self._elapsed_before
        self._rate.set(self._spent_here / seconds if seconds > 0 else 0.0, run)


def _labels(run_dir: Path) -> dict[str, str]:
    return {"run": str(run_dir)}
