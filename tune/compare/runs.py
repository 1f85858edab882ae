"""The chosen points of a front, run again on several seeds: a list of runs on Ray Tune, skipping what is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

from cluster.session import max_parallel_trials
from ofmu.errors import StorageError
from ofmu.io.files import write_json
from ofmu.run_files import RunFiles, finite_only
from tune.compare.statistics import choose_points
from tune.compare.summary import PointRuns, SeedRun
from tune.execution.tuner import run_trials
from tune.results.pareto import reference_point
from tune.results.tables import costs_of
from tune.space.objectives import objective_values
from tune.space.space import run_config
from tune.study.baselines import TARGET

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from ofmu.tasks.preparation import Prepared
    from tune.compare.directory import CompareDirectory
    from tune.config import SearchConfig
    from tune.execution.trainable import Executor
    from tune.results.result import SearchResult
    from tune.space.objectives import Direction

COSTS = ("gradient_evaluations", "seconds", "peak_memory_bytes")

_FAILED = "failed.json"


@dataclass(frozen=True)
class PlannedRun:
    """One point of one method's front on one seed."""

    method: str
    trial: int
    seed: int
    settings: dict[str, Any]
    """What the trial set beyond the search's config, the run's seed included."""
    directory: Path

    @property
    def is_done(self) -> bool:
        """Return whether the run has ended, well or badly."""
        return (self.directory / "metrics.json").is_file() or (self.directory / _FAILED).is_file()


def plan_runs(
    method: str,
    search: SearchResult,
    trials: Sequence[FrozenTrial],
    seeds: Sequence[int],
    count: int,
    home: CompareDirectory,
) -> list[PlannedRun]:
    """Return the runs of at most ``count`` points of a search's front, the untouched target left out.

    ``trials`` are the search's study's, which hold exactly what each one set.
    """
    front = search.front[search.front["role"] != TARGET] if len(search.front) else search.front
    if not len(front):
        return []
    costs = costs_of(front, search.config)
    complete = search.trials[search.trials["state"] == "complete"]
    objectives = search.config.objectives
    corner = reference_point(list(objectives), costs_of(complete, search.config), list(objectives.values()))
    overrides = {trial.number: trial.user_attrs["overrides"] for trial in trials if "overrides" in trial.user_attrs}
    runs = []
    for row in sorted(choose_points(costs, corner, count)):
        number = int(front["trial"].iloc[row])
        for seed in seeds:
            settings = {**overrides[number], "method.seed": seed}
            runs.append(PlannedRun(method, number, seed, settings, home.run(method, number, seed)))
    return runs


def make_runs(
    runs: Sequence[PlannedRun],
    config: SearchConfig,
    *,
    executor: Executor,
    prepared: Prepared | None,
    storage: Path,
    on_ended: Callable[[int], None],
) -> None:
    """Make those of one method's runs that are not done, inside a Ray session, as many at a time as there is room.

    ``on_ended`` hears how many of ``runs`` are done.

    Raises:
        StorageError: a disk refused a write; what is done is kept.
    """
    for run in runs:
        if run.is_done:
            # a killed driver had no time for it
            _tidy(run, config)
    missing = [run for run in runs if not run.is_done]
    if not missing:
        return
    max_parallel_trials(config.cluster, 1)
    source = _RunList(missing, config, lambda: on_ended(sum(run.is_done for run in runs)))
    run_trials(
        source,
        config,
        executor=executor,
        prepared=prepared,
        storage=storage,
        notify=lambda: None,
    )


def read_runs(runs: Sequence[PlannedRun], objectives: dict[str, Direction], home: Path) -> tuple[PointRuns, ...]:
    """Return what became of the runs, by point."""
    points: dict[int, list[PlannedRun]] = {}
    for run in runs:
        points.setdefault(run.trial, []).append(run)
    return tuple(
        PointRuns(
            trial=trial,
            settings={key: value for key, value in seeds[0].settings.items() if key != "method.seed"},
            runs=tuple(_read(run, objectives, home) for run in seeds),
        )
        for trial, seeds in points.items()
    )


class _RunList(Searcher):  # type: ignore[misc]  # Ray ships no types
    """Hands a list of runs to Ray Tune and notes on disk which of them failed; those that end well note themselves."""

    def __init__(self, runs: Sequence[PlannedRun], config: SearchConfig, on_ended: Callable[[], None]) -> None:
        super().__init__()
        self._left = list(runs)
        self._config, self._on_ended = config, on_ended
        self._live: dict[str, PlannedRun] = {}
        self.stopped_by: StorageError | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles the searcher for a restore of its own, which is never used: the runs' files are the state."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next run's specification, or FINISHED."""
        if not self._left or self.stopped_by is not None:
            return str(Searcher.FINISHED)
        run = self._live[trial_id] = self._left.pop(0)
        settings = run_config(self._config, run.settings)
        return {"number": run.trial, "trial_dir": str(run.directory), "run": settings.model_dump(mode="json")}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take note of a run's end; a crash waits for :meth:`fail`, which knows the reason."""
        if error or trial_id not in self._live:
            return
        outcome = json.loads((result or {}).get("outcome", "{}"))
        if "storage" in outcome:
            self.stopped_by = StorageError(outcome["storage"])
        elif "failure" in outcome:
            self.fail(trial_id, outcome["failure"])
        else:
            self._end(self._live.pop(trial_id))

    def fail(self, trial_id: str, reason: str) -> None:
        """Store why a run failed for good."""
        if trial_id not in self._live:
            return
        run = self._live.pop(trial_id)
        try:
            write_json(run.directory / _FAILED, {"reason": reason})
        except StorageError as error:
            # Raised here, it would reach Tune, which takes it for one more failure of the run.
            self.stopped_by = error
        self._end(run)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the runs' files are the state."""
        Path(checkpoint_path).write_text("{}", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing: the runs' files are the state."""

    def _end(self, run: PlannedRun) -> None:
        _tidy(run, self._config)
        self._on_ended()


def _tidy(run: PlannedRun, config: SearchConfig) -> None:
    """Remove what only an unfinished run needs, and its model unless all are to be kept."""
    names = ["checkpoints", "ray_train"] + ["model"] * (config.search.keep_models != "all")
    for name in names:
        shutil.rmtree(run.directory / name, ignore_errors=True)


def _read(run: PlannedRun, objectives: dict[str, Direction], home: Path) -> SeedRun:
    place = run.directory.relative_to(home).as_posix()
    metrics = RunFiles(run.directory).read_metrics()
    if metrics is None:
        reason = json.loads((run.directory / _FAILED).read_text(encoding="utf-8"))["reason"]
        return SeedRun(seed=run.seed, directory=place, reason=reason)
    _, missing = objective_values(metrics, objectives)
    kept = {name: value for name in (*objectives, *COSTS) if (value := finite_only(metrics).get(name)) is not None}
    if missing is not None:
        return SeedRun(seed=run.seed, directory=place, reason=missing)
    return SeedRun(seed=run.seed, directory=place, metrics=kept)
