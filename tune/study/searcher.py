"""The Optuna study of a search, and the searcher that feeds Ray Tune from it by ask and tell.

Ray's own OptunaSearch leaves a trial with a NaN running for ever, tells stopped trials as complete and loses the
reason of a failure; here every trial ends as COMPLETE, FAIL or PRUNED, and a killed search's trials are handed out
again.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from ofmu.errors import ConfigError, PruningRecord, StorageError
from ofmu.run_files import RunFiles, finite_only
from tune.space.objectives import objective_values
from tune.space.space import run_config
from tune.study.baselines import KNOWN, PAPER, SEARCHED, TARGET, overrides_of, stand_ins
from tune.study.samplers import draw, make_sampler
from tune.study.storage import STUDY_NAME, BufferedJournalStorage, flush

if TYPE_CHECKING:
    from tune.config import SearchConfig

FINISHED = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)


def open_study(path: Path, config: SearchConfig) -> optuna.Study:
    """Create or reopen the study in the journal file ``path``; its first trials are the two landmarks.

    Raises:
        RunError: a line of the file is damaged.
        StorageError: the file cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    storage = BufferedJournalStorage(path)
    if STUDY_NAME in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
    else:
        directions = ["minimize" if way == "min" else "maximize" for way in config.objectives.values()]
        study = optuna.create_study(study_name=STUDY_NAME, storage=storage, directions=directions)
    if study.metric_names != list(config.objectives):
        study.set_metric_names(list(config.objectives))
    known = {trial.user_attrs.get("role") for trial in study.get_trials(deepcopy=False)}
    parameters = stand_ins(config)
    for role in (TARGET, PAPER):
        if role not in known:
            study.enqueue_trial(parameters[role], user_attrs={"role": role})
    flush(study)
    return study


class StudySearcher(Searcher):  # type: ignore[misc]  # Ray ships no types
    """Hands a study's trials to Ray Tune, or to whoever asks, and tells the study how each ended.

    The study's file is the searcher's only state. ``trial_dir`` maps a trial's number to its directory;
    ``on_finished`` is called after each tell with the trial's number.
    """

    def __init__(
        self,
        study: optuna.Study,
        config: SearchConfig,
        trial_dir: Callable[[int], Path],
        on_finished: Callable[[int], None] = lambda number: None,
    ) -> None:
        super().__init__()
        self._study = study
        self._config = config
        self._trial_dir = trial_dir
        self._on_finished = on_finished
        self._live: dict[str, optuna.Trial] = {}
        self.stopped_by: StorageError | None = None
        """Set once a disk refuses a write: nothing more is handed out or told, and a resume takes over from here."""
        ended = [trial for trial in study.get_trials(deepcopy=False, states=FINISHED) if not _is_known(trial)]
        self._finished, self._spent = len(ended), sum(map(_evaluations, ended))
        self._adopted = self._settle_interrupted()

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles the searcher for a restore of its own, which is never used: the study is the state."""
        return {}

    @property
    def live(self) -> list[int]:
        """Return the numbers of the trials that were handed out and have not ended."""
        return sorted(trial.number for trial in self._live.values())

    def finished_count(self) -> int:
        """Return how many trials are complete, failed or pruned."""
        return self._finished

    def spent(self) -> int:
        """Return the gradient evaluations of all finished trials, as far as they reported them."""
        return int(self._spent)

    def has_enough(self) -> bool:
        """Return whether no trial beyond those that are running is wanted."""
        search = self._config.search
        budget = search.max_gradient_evaluations
        wanted = search.num_trials - self.finished_count() - len(self._live)
        return wanted <= 0 or (budget is not None and self.spent() >= budget)

    def expected_total(self) -> int:
        """Return how many trials the search is likely to have, given what the finished ones cost."""
        search, done, spent = self._config.search, self.finished_count(), self.spent()
        budget = search.max_gradient_evaluations
        if budget is None or not spent:
            return search.num_trials
        likely = math.ceil(done * budget / spent) if spent < budget else done + len(self._live)
        return min(search.num_trials, max(likely, done + len(self._live)))

    def hand_out(self, key: str) -> dict[str, Any] | None:
        """Return the next trial's specification, to be ended under ``key``; None once enough are on their way."""
        while self.stopped_by is None and (self._adopted or not self.has_enough()):
            trial = self._next_trial()
            specification = self._specify(trial)
            if specification is not None:
                try:
                    flush(self._study)
                except StorageError as error:
                    self.stopped_by = error
                    return None
                self._live[key] = trial
                return specification
        return None

    def end(self, key: str, outcome: Mapping[str, Any]) -> None:
        """Tell the study how the trial under ``key`` ended, by an outcome of :class:`tune.execution.trainable.UnlearningTrial`."""
        trial = self._live.pop(key)
        if "storage" in outcome:
            self.stopped_by = StorageError(outcome["storage"])
        elif "pruned" in outcome:
            self._tell(trial, outcome["pruned"]["metrics"], None, outcome["pruned"])
        else:
            self._tell(trial, outcome.get("metrics") or {}, outcome.get("failure"))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's specification, or FINISHED once enough trials are done or on their way."""
        return self.hand_out(trial_id) or str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended; a crash waits for :meth:`fail`, which knows the reason."""
        if not error and trial_id in self._live:
            self.end(trial_id, json.loads((result or {}).get("outcome", "{}")))

    def fail(self, trial_id: str, reason: str) -> None:
        """Tell the study that a trial crashed for good."""
        if trial_id in self._live:
            self._tell(self._live.pop(trial_id), {}, reason)

    def close(self, reason: str) -> None:
        """Fail whatever is still running: for the orderly end of a search, never for an interruption."""
        for trial_id in list(self._live):
            self.fail(trial_id, reason)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the study's file is the state."""
        Path(checkpoint_path).write_text("{}", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing: the study's file is the state."""

    def _settle_interrupted(self) -> list[FrozenTrial]:
        """Tell trials that ended while nobody listened; return those to be handed out again."""
        again = []
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            metrics = RunFiles(self._trial_dir(trial.number)).read_metrics()
            record = None if metrics is not None else RunFiles(self._trial_dir(trial.number)).read_pruning_record()
            pruned = None if record is None else record.to_json()
            if metrics is not None:
                self._tell(optuna.Trial(self._study, trial._trial_id), metrics, None)
            elif pruned is not None:
                self._tell(optuna.Trial(self._study, trial._trial_id), pruned["metrics"], None, pruned)
            else:
                again.append(trial)
        return again

    def _next_trial(self) -> optuna.Trial:
        adopted = self._adopted.pop(0) if self._adopted else None
        number = len(self._study.get_trials(deepcopy=False)) if adopted is None else adopted.number
        search = self._config.search
        self._study.sampler = make_sampler(search.sampler, self._config.seed, number, search.num_trials)
        return self._study.ask() if adopted is None else optuna.Trial(self._study, adopted._trial_id)

    def _specify(self, trial: optuna.Trial) -> dict[str, Any] | None:
        """Return what the trial is to run; None, and a failed trial, where its settings contradict each other."""
        role = trial.user_attrs.get("role", SEARCHED)
        overrides = overrides_of(role, self._config, draw(trial, self._config))
        trial.set_user_attr("role", role)
        trial.set_user_attr("overrides", overrides)
        try:
            config = run_config(self._config, overrides)
        except ConfigError as error:
            self._tell(trial, {}, str(error))
            return None
        return {
            "number": trial.number,
            "trial_dir": str(self._trial_dir(trial.number)),
            "run": config.model_dump(mode="json"),
            "judged": role == SEARCHED,
        }

    def _tell(
        self,
        trial: optuna.Trial,
        metrics: Mapping[str, Any],
        failure: str | None,
        pruned: Mapping[str, Any] | None = None,
    ) -> None:
        """Store what is known of the trial, then its end: a kill in between leaves it to be adopted."""
        try:
            if pruned is None:
                self._store(trial, metrics, failure)
            else:
                self._store_pruned(trial, metrics, pruned)
            self._finished += 1
            self._spent += _evaluations(self._study._storage.get_trial(trial._trial_id))
            self._on_finished(trial.number)
        except StorageError as error:
            # Raised here, it would reach Tune, which takes it for one more failure of the trial.
            self.stopped_by = StorageError(f"The search cannot store its results: {error}")

    def _store(self, trial: optuna.Trial, metrics: Mapping[str, Any], failure: str | None) -> None:
        reasons = RunFiles(self._trial_dir(trial.number)).read_reasons()
        values, missing = objective_values(metrics, self._config.objectives, reasons)
        reason = failure or missing
        _set_metrics(trial, metrics)
        if reason is not None:
            trial.set_user_attr("reason", reason)
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, values)

    def _store_pruned(self, trial: optuna.Trial, costs: Mapping[str, Any], account: Mapping[str, Any]) -> None:
        """Store where the trial was stopped, how it stood there, and what it had cost; it has no objectives."""
        _set_metrics(trial, costs)
        for name in ("rung", "round", "total", "objectives"):
            if name in account:
                trial.set_user_attr(name, account[name])
        trial.set_user_attr("reason", PruningRecord.from_json(account).sentence)
        self._study.tell(trial, state=TrialState.PRUNED)


def _is_known(trial: FrozenTrial) -> bool:
    """Return whether it is no trial of this search's own."""
    return bool(trial.user_attrs.get("role") == KNOWN)


def _evaluations(trial: FrozenTrial) -> float:
    return float(trial.user_attrs.get("gradient_evaluations") or 0)


def _set_metrics(trial: optuna.Trial, metrics: Mapping[str, Any]) -> None:
    stored = finite_only(metrics)
    trial.set_user_attr("metrics", stored)
    for cost in ("seconds", "gradient_evaluations"):
        if cost in stored:
            trial.set_user_attr(cost, stored[cost])
