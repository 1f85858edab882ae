"""Run the chosen points of a front again on several seeds, on Ray Tune. Runs that are done are skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.session import max_parallel_trials
from ofmu.errors import ConfigError, StorageError
from ofmu.run_files import MODEL, RunFiles, finite_only
from tune.execution.trial_records import TrialOutcome, TrialSpec
from tune.execution.trial_source import TrialSource
from tune.execution.tuner import run_trials
from tune.pareto import choose_points, reference_point
from tune.results.tables import costs_of, feasible_rows, selected_round
from tune.rundir.seed_runs import PointRuns, SeedRun
from tune.rundir.trial_files import TEMPORARY_FOLDERS, FailureRecord, TrialFiles
from tune.space.objectives import objective_values
from tune.space.space import run_config
from tune.study.baselines import TARGET

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from ofmu.tasks.preparation import Prepared
    from tune.config import SearchConfig
    from tune.execution.trainable import Executor
    from tune.results.result import SearchResult

_KEPT_COSTS = ("gradient_evaluations", "seconds", "peak_memory_bytes")
"""Costs of a run that are kept."""
_OF_ONE_RUN = frozenset({"method.seed", "method.retain_draw"})
"""Settings in which the runs of one point differ."""


@dataclass(frozen=True)
class PlannedRun:
    """One point of a front on one seed."""

    trial: int
    seed: int
    settings: dict[str, Any]
    """What the run adds to the search's config, the seed included."""
    directory: Path
    retain_draw: int | None = None
    """The draw of the retain rows that the run uses; None for a run on all of them."""
    last_round: int | None = None
    """The round for which the trial stands, and after which the run ends; None for the end of the method."""

    @property
    def is_done(self) -> bool:
        """Whether the run is complete or failed."""
        return self.files.metrics.is_file() or self.files.failed.is_file()

    @property
    def files(self) -> TrialFiles:
        """The run's files."""
        return TrialFiles(self.directory)


def plan_runs(
    search: SearchResult,
    trials: Sequence[FrozenTrial],
    seeds: Sequence[int],
    count: int,
    directory: Callable[[int, int], Path],
    *,
    chosen: Sequence[int] = (),
) -> list[PlannedRun]:
    """Choose points of a search's front, and return their runs. The untouched target is never chosen.

    If no trial keeps all constraints, no point is chosen.

    Args:
        search: the search's result.
        trials: the trials of the search's study. They hold what each trial set.
        seeds: the seeds on which each point runs.
        count: largest number of points.
        directory: returns the directory of a run, from the trial and the seed.
        chosen: numbers of trials that run in place of the front's points.

    Raises:
        ConfigError: one of ``chosen`` is no complete trial.
    """
    overrides = {trial.number: trial.user_attrs["overrides"] for trial in trials if "overrides" in trial.user_attrs}
    rounds = {trial.number: selected_round(trial.user_attrs.get("metrics", {})) for trial in trials}
    numbers = _checked(search, chosen) if chosen else _best_points(search, count)
    return [
        PlannedRun(
            number,
            seed,
            {**overrides[number], "method.seed": seed},
            directory(number, seed),
            last_round=rounds.get(number),
        )
        for number in numbers
        for seed in seeds
    ]


def _checked(search: SearchResult, chosen: Sequence[int]) -> list[int]:
    complete = set(search.trials.loc[search.trials["state"] == "complete", "trial"])
    for number in chosen:
        if number not in complete:
            raise ConfigError(
                f"search.confirm_trials names {number}, which is no complete trial of {search.display_path}: name "
                "numbers of complete trials"
            )
    return sorted(set(chosen))


def _best_points(search: SearchResult, count: int) -> list[int]:
    """Return the numbers of the trials of the front that cover the most hypervolume together."""
    front = search.front[search.front["role"] != TARGET] if len(search.front) else search.front
    if not len(front) or not search.has_feasible:
        return []
    costs = costs_of(front, search.config)
    complete = search.trials[search.trials["state"] == "complete"]
    objectives = search.config.objectives
    reference = reference_point(list(objectives), costs_of(complete, search.config), list(objectives.values()))
    return [int(front["trial"].iloc[row]) for row in sorted(choose_points(costs, reference, count))]


def why_no_point(search: SearchResult) -> str:
    """Return why :func:`plan_runs` chooses no point of a search's front: a clause for a sentence."""
    others = search.trials[search.trials["role"] != TARGET]
    if not (others["state"] == "complete").any():
        return "no trial but the untouched target is complete"
    limits = ", ".join(map(str, search.limits))
    if not len(feasible_rows(others)):
        return f"no trial{' but the untouched target' if search.has_feasible else ''} keeps the constraints ({limits})"
    return f"no trial{f' that keeps the constraints ({limits})' if limits else ''} forgets more than the target"


def make_runs(
    runs: Sequence[PlannedRun],
    config: SearchConfig,
    *,
    executor: Executor,
    prepared: Prepared | None,
    storage: Path,
    on_run_end: Callable[[int], None],
) -> None:
    """Make the runs that are not done, as many at a time as the cluster holds. A Ray session must be
    open.

    Args:
        runs: the runs of one search's points.
        config: the search.
        executor: runs one trial.
        prepared: the target and the reference; None if the executor needs neither.
        storage: the directory of Ray Tune's own files.
        on_run_end: called after each run with the number of runs that are done.

    Raises:
        StorageError: a write failed. Runs that are done stay done.
    """
    for run in runs:
        if run.is_done:
            # A killed process may have left files.
            _delete_leftovers(run, config)
    missing = [run for run in runs if not run.is_done]
    if not missing:
        return
    max_parallel_trials(config.cluster, 1)
    source = _RunList(missing, config, lambda: on_run_end(sum(run.is_done for run in runs)))
    run_trials(
        source,
        config,
        executor=executor,
        prepared=prepared,
        storage=storage,
        on_trial_start=lambda: None,
    )


def read_runs(runs: Sequence[PlannedRun], names: Iterable[str], home: Path) -> tuple[PointRuns, ...]:
    """Return the results of the runs, by point.

    Args:
        runs: the runs.
        names: the metrics that a run must have: the objectives, and the metrics of the constraints.
        home: the run directory, to which paths are relative.
    """
    names = tuple(names)
    points: dict[int, list[PlannedRun]] = {}
    for run in runs:
        points.setdefault(run.trial, []).append(run)
    return tuple(
        PointRuns(
            trial=trial,
            settings={key: value for key, value in seeds[0].settings.items() if key not in _OF_ONE_RUN},
            runs=tuple(_read(run, names, home) for run in seeds),
        )
        for trial, seeds in points.items()
    )


class _RunList(TrialSource[PlannedRun]):
    """Give a list of runs to Ray Tune. Write the reason of a failed run; a complete run leaves its own files."""

    def __init__(self, runs: Sequence[PlannedRun], config: SearchConfig, on_run_end: Callable[[], None]) -> None:
        super().__init__()
        self._waiting = list(runs)
        self._config, self._base, self._on_run_end = config, config.unlearn, on_run_end

    def _start_next(self) -> tuple[PlannedRun, TrialSpec] | None:
        if not self._waiting:
            return None
        run = self._waiting.pop(0)
        settings = run_config(self._base, run.settings)
        spec = TrialSpec(number=run.trial, trial_dir=run.directory, run=settings, last_round=run.last_round)
        return run, spec

    def _take_back(self, trial: PlannedRun) -> None:
        self._waiting.append(trial)

    def _store_end(self, trial: PlannedRun, outcome: TrialOutcome) -> None:
        if outcome.failure is not None:
            try:
                trial.files.write_failure(FailureRecord(outcome.failure))
            except StorageError as error:
                self.stopped_by = error
        _delete_leftovers(trial, self._config)
        self._on_run_end()


def _delete_leftovers(run: PlannedRun, config: SearchConfig) -> None:
    """Delete what only an unfinished run needs. Delete the model unless all models are kept."""
    models = () if config.search.keep_models == "all" else (MODEL,)
    run.files.delete_folders((*TEMPORARY_FOLDERS, *models))


def _read(run: PlannedRun, names: Sequence[str], home: Path) -> SeedRun:
    place, draw = run.directory.relative_to(home).as_posix(), run.retain_draw
    metrics = run.files.read_metrics()
    if metrics is None:
        failure = run.files.read_failure()
        reason = failure.reason if failure else "the run has no result"
        return SeedRun(seed=run.seed, directory=place, reason=reason, retain_draw=draw)
    rows_hash = RunFiles(run.directory).read_retain_rows_hash()
    _, missing = objective_values(metrics, names)
    if missing is not None:
        return SeedRun(seed=run.seed, directory=place, reason=missing, retain_draw=draw, retain_rows_hash=rows_hash)
    finite = finite_only(metrics)
    kept = {name: value for name in (*names, *_KEPT_COSTS) if (value := finite.get(name)) is not None}
    return SeedRun(seed=run.seed, directory=place, metrics=kept, retain_draw=draw, retain_rows_hash=rows_hash)
