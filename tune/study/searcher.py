"""The Optuna study of a search, and the searcher that gives the study's trials to Ray Tune by ask and tell.

Ray's own OptunaSearch leaves a trial with a NaN running for ever, stores stopped trials as complete, and loses the
reason of a failure. Here every trial ends as COMPLETE, FAIL or PRUNED, and the unfinished trials of a killed search run
again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ofmu.errors import ConfigError, OfmuError, PruningRecord, StorageError
from ofmu.run_files import RunFiles, finite_only
from tune.execution.trial_records import TrialOutcome, TrialSpec
from tune.execution.trial_source import TrialSource
from tune.space.constraints import violations
from tune.space.draw import draw
from tune.space.objectives import objective_values
from tune.space.space import run_config
from tune.study.baselines import PRIOR, PUBLISHED, SAMPLED, TARGET, in_space_params, overrides_of
from tune.study.checks import check_results_are_stored, check_study, store_config
from tune.study.limits import check_target_can_tell, read_limits, store_limits
from tune.study.samplers import make_sampler
from tune.study.storage import STUDY_NAME, flush, open_storage

if TYPE_CHECKING:
    from tune.config import SearchConfig

FINISHED = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)


def open_study(path: Path, config: SearchConfig, target: Mapping[str, Any] | None = None) -> optuna.Study:
    """Create or open the study in the journal file ``path``. Its first trials are the baselines of the config.

    Args:
        path: the journal file.
        config: the search.
        target: the metrics of the untouched target that are known, for constraints that are shares of them.

    Raises:
        ConfigError: a constraint is a share of a target's value that is 0 or negative.
        RunError: the file is damaged, or belongs to another config or to other trials than those beside it.
        StorageError: the file cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    storage = open_storage(path)
    if STUDY_NAME in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
        check_study(study, config, path)
        check_results_are_stored(study, path)
    else:
        check_results_are_stored(None, path)
        directions = ["minimize" if way == "min" else "maximize" for way in config.objectives.values()]
        study = optuna.create_study(study_name=STUDY_NAME, storage=storage, directions=directions)
    if study.metric_names != list(config.objectives):
        study.set_metric_names(list(config.objectives))
    store_config(study, config)
    store_limits(study, config, target or {})
    present = {trial.user_attrs.get("role") for trial in study.get_trials(deepcopy=False)}
    parameters = in_space_params(config.search.space, config.unlearn)
    for role in (TARGET, PUBLISHED):
        if role in config.search.first_trials and role not in present:
            study.enqueue_trial(parameters[role], user_attrs={"role": role})
    flush(study)
    return study


class StudySearcher(TrialSource[optuna.Trial]):
    """Give the trials of a study to Ray Tune or to another caller, and store in the study how each trial ended.

    The study's file is the only state.

    Args:
        study: the study, see :func:`open_study`.
        config: the search.
        trial_dir: returns a trial's directory from the trial's number.
        on_finished: called with a trial's number after the trial's end is stored.
        seconds: returns how long the search has run.
    """

    def __init__(
        self,
        study: optuna.Study,
        config: SearchConfig,
        trial_dir: Callable[[int], Path],
        on_finished: Callable[[int], None] = lambda number: None,
        seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        super().__init__()
        self._study, self._config, self._base = study, config, config.unlearn
        self._trial_dir = trial_dir
        self._on_finished, self._seconds = on_finished, seconds
        finished = [trial for trial in study.get_trials(deepcopy=False, states=FINISHED) if not _is_prior(trial)]
        self._finished, self._spent = len(finished), sum(map(_gradient_evaluations, finished))
        self._limits = read_limits(study, config)
        self._interrupted: list[FrozenTrial | optuna.Trial] = [*self._recover_interrupted()]

    @property
    def is_waiting(self) -> bool:
        """Whether the target's trial runs, and bounds of constraints are shares of what it will report."""
        return self._limits is None and bool(self._running)

    def finished_count(self) -> int:
        """Return how many trials are complete, failed or pruned."""
        return self._finished

    def spent(self) -> int:
        """Return the gradient evaluations of all finished trials that reported them."""
        return int(self._spent)

    def budget_reached(self) -> bool:
        """Return whether the finished and running trials use up the budget, so that no new trial is needed."""
        search = self._config.search
        limit = search.max_gradient_evaluations
        missing = search.num_trials - self.finished_count() - len(self._running)
        return missing <= 0 or (limit is not None and self.spent() >= limit) or self._time_is_over()

    def _time_is_over(self) -> bool:
        """Return whether ``search.max_hours`` have passed, and the baselines have started."""
        search = self._config.search
        started = self.finished_count() + len(self._running)
        hours = search.max_hours
        return hours is not None and started >= len(search.first_trials) and self._seconds() >= 3600 * hours

    def expected_total(self) -> int:
        """Return how many trials the search will probably have, judged by the cost of the finished trials."""
        search, done = self._config.search, self.finished_count()
        limits = ((self.spent(), search.max_gradient_evaluations), (self._seconds() / 3600, search.max_hours))
        totals = [math.ceil(done * limit / spent) for spent, limit in limits if limit is not None and spent]
        if not totals or not done:
            return search.num_trials
        return min(search.num_trials, max(min(totals), done + len(self._running)))

    def close(self, reason: str) -> None:
        """Fail all running trials. Call this only at the orderly end of a search, never after an interruption."""
        for key in list(self._running):
            self.fail(key, reason)

    def _recover_interrupted(self) -> list[FrozenTrial]:
        """Store the ends that a killed search did not store. Return the trials that must run again."""
        again = []
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            outcome = TrialOutcome.stored_in(RunFiles(self._trial_dir(trial.number)))
            if outcome is None:
                again.append(trial)
            else:
                self._store_end(optuna.Trial(self._study, trial._trial_id), outcome)
        return again

    def _start_next(self) -> tuple[optuna.Trial, TrialSpec] | None:
        if self._limits is None:
            if self.is_waiting:
                return None
            try:
                check_target_can_tell(self._study, self._config)
            except ConfigError as error:
                self.stopped_by = error
        while self.stopped_by is None and (self._interrupted or not self.budget_reached()):
            trial = self._ask()
            spec = self._spec_of(trial)
            if spec is not None:
                try:
                    flush(self._study)
                except StorageError as error:
                    self.stopped_by = error
                    return None
                return trial, spec
        return None

    def _take_back(self, trial: optuna.Trial) -> None:
        self._interrupted.append(trial)

    def _ask(self) -> optuna.Trial:
        interrupted = self._interrupted.pop(0) if self._interrupted else None
        number = len(self._study.get_trials(deepcopy=False)) if interrupted is None else interrupted.number
        search = self._config.search
        self._study.sampler = make_sampler(search.sampler, self._config.seed, number, search.num_trials)
        return self._study.ask() if interrupted is None else optuna.Trial(self._study, interrupted._trial_id)

    def _spec_of(self, trial: optuna.Trial) -> TrialSpec | None:
        """Return what the trial runs. If its settings contradict each other, store a failure and return None."""
        role, space = trial.user_attrs.get("role", SAMPLED), self._config.search.space
        overrides = overrides_of(role, space, self._base, draw(trial, space, self._base))
        trial.set_user_attr("role", role)
        trial.set_user_attr("overrides", overrides)
        try:
            run = run_config(self._base, overrides)
        except ConfigError as error:
            self._store_end(trial, TrialOutcome(failure=str(error)))
            return None
        return TrialSpec(
            number=trial.number, trial_dir=self._trial_dir(trial.number), run=run, early_stopping=role == SAMPLED
        )

    def _store_end(self, trial: optuna.Trial, outcome: TrialOutcome) -> None:
        """Store the outcome, then the state. After a kill in between, the trial counts as interrupted."""
        try:
            if outcome.pruned is not None:
                self._store_pruned(trial, outcome.pruned)
            else:
                self._store_metrics(trial, outcome.metrics or {}, outcome.failure)
            self._finished += 1
            self._spent += _gradient_evaluations(self._study._storage.get_trial(trial._trial_id))
            self._on_finished(trial.number)
        except StorageError as error:
            self.stopped_by = StorageError(f"The search cannot store its results: {error}")
        except OfmuError as error:
            self.stopped_by = error

    def _store_metrics(self, trial: optuna.Trial, metrics: Mapping[str, Any], failure: str | None) -> None:
        reasons = RunFiles(self._trial_dir(trial.number)).read_reasons()
        values, missing = objective_values(metrics, self._config.objectives, reasons)
        _, unbounded = objective_values(metrics, self._config.search.constraints, reasons)
        reason = failure or missing or unbounded
        _set_metrics(trial, metrics)
        if reason is not None:
            trial.set_user_attr("reason", reason)
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._store_violations(trial, metrics)
            self._study.tell(trial, values)

    def _store_violations(self, trial: optuna.Trial, metrics: Mapping[str, Any]) -> None:
        """Store how far the trial violates each constraint, where Optuna's samplers look for it."""
        if self._limits is None:
            # Until the bounds are known, only the target's trial runs.
            self._limits = store_limits(self._study, self._config, metrics)
        stored = trial.constraints
        for key, value in violations(metrics, self._limits or ()).items():
            if key not in stored:
                trial.set_constraint(key, value)

    def _store_pruned(self, trial: optuna.Trial, record: PruningRecord) -> None:
        """Store where the trial was stopped, its objectives at that round, and its cost. It has no final objectives."""
        _set_metrics(trial, record.metrics)
        for name, value in record.to_json().items():
            if name != "metrics":
                trial.set_user_attr(name, value)
        trial.set_user_attr("reason", record.sentence)
        self._study.tell(trial, state=TrialState.PRUNED)


def _is_prior(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("role") == PRIOR)


def _gradient_evaluations(trial: FrozenTrial) -> float:
    return float(trial.user_attrs.get("gradient_evaluations") or 0)


def _set_metrics(trial: optuna.Trial, metrics: Mapping[str, Any]) -> None:
    stored = finite_only(metrics)
    trial.set_user_attr("metrics", stored)
    for cost in ("seconds", "gradient_evaluations"):
        if cost in stored:
            trial.set_user_attr(cost, stored[cost])
