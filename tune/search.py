"""ParetoSearch: many unlearning runs on Ray Tune, guided by Optuna, to a front of forgetting against utility."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.capacity import check_trial_fits, decide_trial
from cluster.session import max_parallel_trials, ray_session
from cluster.storage.uri import check_storage
from ofmu.errors import ConfigError, StorageError
from ofmu.io.plugins import allowed_plugins
from ofmu.preflight import check_inputs
from ofmu.reports.page import write_page_or_warn
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.events import PreparationStarted
from tune.callbacks.base import EngineDecided, Progress, WarmStartLoaded
from tune.callbacks.callback_list import Callback, CallbackList
from tune.callbacks.prometheus import PrometheusCallback
from tune.config import SearchConfig, search_config
from tune.confirmation.runs import PlannedRun, make_runs, plan_runs, read_runs
from tune.execution.synced_executor import SyncedExecutor
from tune.execution.trainable import Executor
from tune.execution.tuner import run_trials
from tune.preparation import (
    check_constraints_can_be_kept,
    check_objectives_on_rows,
    prepare_search,
    resolve_objectives,
    write_reference_metrics,
)
from tune.results.incremental import TimeBudget
from tune.results.page import search_page
from tune.results.report import write_plot
from tune.results.result import SearchResult
from tune.round_decider import round_decider
from tune.rundir.prepared import upload_prepared
from tune.rundir.search_dir import RunDirectory
from tune.rundir.seed_runs import Confirmation
from tune.session import SearchSession
from tune.study.baselines import with_decided_baselines
from tune.study.checks import check_content, check_results_are_stored
from tune.tracking.trackers.open_trackers import open_trackers

if TYPE_CHECKING:
    from ofmu.tasks.preparation import Prepared

_TABLES_SHARE, _TABLES_BURST = 0.02, 1.0
"""Largest share of a search's time that is spent on writing tables, and the seconds that may be spent at once."""


class ParetoSearch:
    """A search for the Pareto front of two or three objectives.

    Args:
        config: a search's config or mapping; or a run's config, which gets the defaults of a search.
        objectives: replaces ``search.objectives``.
        num_trials: replaces ``search.num_trials``.
        run_dir: a new directory or URI. None: a new directory under ``runs/``.
        executor: runs one trial. None: prepare the models, and run trials with :func:`cluster.train.trainer.run_trial`,
            or with :class:`cluster.train.worker_group.WorkerGroupPool` if ``cluster.num_workers`` is above 0.
        callbacks: callbacks of the search, or functions that are called with every :class:`tune.FinishedTrial`. An
            exception that a callback raises becomes a warning.
        warm_start: run directories of earlier searches; replaces ``search.warm_start``.

    Raises:
        ConfigError: a setting is unknown, out of range, or contradicts another setting.
        RunError: ``run_dir`` already holds a run, or its name is not UTF-8.
    """

    def __init__(
        self,
        config: SearchConfig | UnlearnConfig | Mapping[str, Any],
        objectives: Mapping[str, str] | None = None,
        num_trials: int | None = None,
        run_dir: str | Path | None = None,
        executor: Executor | None = None,
        callbacks: Sequence[Callback] = (),
        warm_start: str | Path | Sequence[str | Path] | None = None,
    ) -> None:
        self.config, left_out = with_decided_baselines(search_config(config, objectives, num_trials, warm_start))
        for note in [*self.config.departures().values(), *([left_out] if left_out else ())]:
            warnings.warn(note, stacklevel=2)
        self._run = RunDirectory.create_new(run_dir)
        self._executor = executor
        self._callbacks = CallbackList(callbacks)

    @property
    def run_dir(self) -> Path:
        """The directory to which the search writes."""
        return self._run.path

    def run(self) -> SearchResult:
        """Search until ``search.num_trials`` trials are complete, failed or pruned.

        Raises:
            ClusterError: the Ray cluster is unreachable or too small.
            MemoryLimitError: a trial needs more memory than this machine has, and there is no other machine.
            OfmuError: data or model cannot be prepared. Then nothing has been written to the run directory.
        """
        if self._executor is None:
            self._decide_engine()
        return RaySearch(self._run, self.config, self._executor, self._callbacks).run()

    def _decide_engine(self) -> None:
        """Decide the settings of the engine that are ``auto``. All trials share the decision, and so does a resume."""
        keeps_round = self.config.search.checkpoint_selection.enabled
        decision = decide_trial(self.config.unlearn, self.config.cluster, keeps_round=keeps_round)
        if decision.sentence is not None:
            self._callbacks.on_prepare(EngineDecided(sentence=decision.sentence))
            self.config = self.config.model_copy(update={"engine": decision.config.engine})

    @classmethod
    def resume(
        cls,
        run_dir: str | Path,
        overrides: Sequence[str] = (),
        executor: Executor | None = None,
        callbacks: Sequence[Callback] = (),
        *,
        allow_code: bool | Collection[str] = False,
    ) -> SearchResult:
        """Continue a search that was killed, or return the result of a search that is over.

        Args:
            run_dir: the search's directory or URI.
            overrides: entries such as ``search.num_trials=64``. They may change the number of trials, the concurrency,
                the kept models, and the cluster.
            executor: runs one trial, as for the constructor.
            callbacks: callbacks, as for the constructor.
            allow_code: whether modules of the user that the directory's config names are imported, or which of them.

        Raises:
            RunError: ``run_dir`` is not the directory of a search, another process works on it, or the rows, a model,
                the reference or a module of the user has changed since its start.
            ConfigError: an override would change what is searched, or a module of the user may not be imported.
        """
        run = RunDirectory.open_existing(run_dir)
        config = run.read_config(overrides, plugins=allowed_plugins(allow_code))
        search = RaySearch(run, config, executor, CallbackList(callbacks))
        if executor is None:
            search.content = check_content(run, search.session.config)
        with run.lock():
            if search.is_over():
                return search.finish()
        return search.run()


class RaySearch:
    """One process's work on a search whose trials run on Ray Tune."""

    def __init__(
        self, run: RunDirectory, config: SearchConfig, executor: Executor | None, callbacks: CallbackList
    ) -> None:
        check_storage(run.path)
        if run.uri is not None and config.search.confirm_seeds:
            raise ConfigError(
                "search.confirm_seeds does not work with a run directory at a URI: set search.confirm_seeds to 0, or "
                "name a directory on a disk that all nodes share"
            )
        self.session = SearchSession(run, config, self._on_trial_end)
        self._executor, self._callbacks = executor, callbacks
        for tracker in open_trackers(run.path, config):
            callbacks.add(tracker)
        self.content: Mapping[str, str] | None = None
        """The hashes of what the search starts from, if they are known: see :mod:`ofmu.content`."""
        self._tables = TimeBudget(share=_TABLES_SHARE, burst=_TABLES_BURST)
        self._done_before = 0

    def is_over(self) -> bool:
        """Return whether the study holds enough finished trials, and no running trial. Call this under the lock."""
        if not self.session.has_study:
            check_results_are_stored(None, self.session.run.study_file)
            return False
        self.session.open()
        return self.session.is_over() and all(run.is_done for run in self._confirmation_runs())

    def run(self) -> SearchResult:
        """Join a cluster or start one, prepare, and run the missing trials."""
        session = self.session
        session.check_warm_start()
        if self._executor is None:
            check_objectives_on_rows(session.config, check_inputs(session.config.unlearn))
            keeps_round = session.config.search.checkpoint_selection.enabled
            check_trial_fits(session.config.unlearn, session.config.cluster, keeps_round=keeps_round)
        with ray_session(session.config.cluster, session.config.engine.device, self._resume_hint) as cluster:
            session.config = session.config.model_copy(update={"cluster": cluster})
            # Fail before the expensive preparation if the cluster is too small.
            max_parallel_trials(session.config.cluster, 1)
            executor, prepared = self._prepare()
            warm_start = session.read_warm_start(None if prepared is None else prepared.keys)
            if warm_start is not None:
                event = WarmStartLoaded(prior=len(warm_start.prior), initial=len(warm_start.initial))
                self._callbacks.on_prepare(event)
            with session.locked(warm_start):
                self._store_prepared(prepared)
                session.open()
                self._start_callbacks()
                self._run_trials(executor, prepared)
                session.searcher.close("the search ended before this trial did")
                self._confirm(executor, prepared)
                return self.finish()

    def finish(self) -> SearchResult:
        """Write the reports of a search that is over."""
        self._write_confirmation()
        result = self.report()
        write_plot(result)
        write_page_or_warn(lambda: search_page(result), result.run_dir)
        shutil.rmtree(self.session.run.path / "ray", ignore_errors=True)
        self._notify_recovered()
        self._callbacks.on_end(result)
        return result

    def report(self) -> SearchResult:
        """Write the tables of the result so far, and return the result."""
        started = time.monotonic()
        result = self.session.report()
        self._tables.spend(time.monotonic() - started)
        return result

    def notify(self) -> None:
        """Write the tables if the time budget for tables allows it, and call the callbacks with the progress."""
        if self._tables.is_due():
            self.report()
        self.session.run.mark_dirty(check=False)
        self._callbacks.on_progress(self.progress())

    def progress(self) -> Progress:
        """Return the state of the search at this moment."""
        session = self.session
        counts, running = session.counts, session.running_trials()
        total, done = session.searcher.expected_total(), sum(counts.values())
        newly = done - self._done_before
        pace = session.seconds_here() / newly if newly > 0 else None
        if pace is not None and (each := session.mean_trial_seconds) is not None:
            # The start of Ray and of the trials' processes counts as no trial.
            pace = min(pace, each / (len(running) + 1))
        return Progress(
            result=session.result(),
            total=total,
            complete=counts["complete"],
            failed=counts["failed"],
            running=tuple(trial.number for trial in running),
            elapsed=session.seconds(),
            remaining=None if pace is None else pace * max(total - done, 0),
            pruned=counts["pruned"],
        )

    def _prepare(self) -> tuple[Executor, Prepared | None]:
        """Return the executor, and what trials start from. An executor of the caller needs no preparation."""
        session, uri = self.session, self.session.run.uri
        if self._executor is not None:
            search = session.config.search
            for name, section in (
                ("early_stopping", search.early_stopping),
                ("checkpoint_selection", search.checkpoint_selection),
            ):
                if section.enabled:
                    raise ConfigError(
                        f"search.{name} needs ofmu's own trainer, and this search has another executor: "
                        f"set search.{name}.enabled to false"
                    )
            return self._executor if uri is None else SyncedExecutor(self._executor, uri), None
        self._callbacks.on_prepare(PreparationStarted())
        prepared = prepare_search(session.run, session.config, self._callbacks.on_prepare)
        session.config = resolve_objectives(session.config, prepared)
        session.target = check_constraints_can_be_kept(session.config, prepared)
        executor = default_executor(session.config)
        return executor if uri is None else SyncedExecutor(executor, uri), prepared

    def _store_prepared(self, prepared: Prepared | None) -> None:
        run = self.session.run
        if prepared is not None:
            run.write_content(self.session.config.unlearn, self.content)
            write_reference_metrics(run, self.session.config, prepared)
            if run.uri is not None:
                upload_prepared(prepared, run.uri)

    def _start_callbacks(self) -> None:
        progress = self.progress()
        self._done_before = progress.done
        self._callbacks.add(PrometheusCallback())
        self._callbacks.on_start(progress)
        self._notify_recovered()

    def _run_trials(self, executor: Executor, prepared: Prepared | None) -> None:
        session = self.session
        decider = round_decider(session.run, session.study, session.config)
        with self._naming_the_resume(), decider as early_stopping:
            run_trials(
                self.session.searcher,
                self.session.config,
                executor=executor,
                prepared=prepared,
                storage=self.session.run.path / "ray",
                on_trial_start=self.notify,
                early_stopping=early_stopping,
            )

    def _confirmation_runs(self) -> list[PlannedRun]:
        """Return the runs of the front's best points on further seeds."""
        session = self.session
        options, first = session.config.search, session.config.seed + 1
        if not options.confirm_seeds:
            return []
        seeds = range(first, first + options.confirm_seeds)
        trials = session.study.get_trials(deepcopy=False)
        return plan_runs(
            session.result(),
            trials,
            seeds,
            options.confirm_points,
            session.run.confirmation_run,
            chosen=options.confirm_trials,
        )

    def _confirm(self, executor: Executor, prepared: Prepared | None) -> None:
        """Run the front's best points again on the further seeds on which they have not run."""
        runs, run = self._confirmation_runs(), self.session.run
        self._callbacks.on_confirm(sum(each.is_done for each in runs), len(runs))
        with self._naming_the_resume():
            make_runs(
                runs,
                self.session.config,
                executor=executor,
                prepared=prepared,
                storage=run.path / "ray",
                on_run_end=lambda done: self._callbacks.on_confirm(done, len(runs)),
            )

    def _write_confirmation(self) -> None:
        runs, run = self._confirmation_runs(), self.session.run
        if not runs:
            return
        points = read_runs(runs, self.session.config.measured, run.path)
        run.write_confirmation(Confirmation(seeds=tuple(dict.fromkeys(each.seed for each in runs)), points=points))

    @contextmanager
    def _naming_the_resume(self) -> Iterator[None]:
        """Add to an error of the storage the command that continues the search."""
        try:
            yield
        except StorageError as error:
            raise StorageError("; then ".join(filter(None, (str(error), self._resume_hint())))) from error

    def _resume_hint(self) -> str:
        session = self.session
        return f"continue with --resume {session.run.resume_words(session.config)}" if session.has_study else ""

    def _on_trial_end(self, number: int) -> None:
        self.notify()
        self._callbacks.on_trial_end(self.session.finished_trial(number))

    def _notify_recovered(self) -> None:
        """Call the callbacks with the trials that ended before there were callbacks."""
        while self.session.recovered:
            number = self.session.recovered.pop(0)
            self._callbacks.on_trial_end(self.session.finished_trial(number))


def default_executor(config: SearchConfig) -> Executor:
    """Return the executor of a search that names none: a run in the trial's process, or in a worker group."""
    # These imports load torch, which takes seconds.
    from cluster.train.trainer import run_trial
    from cluster.train.worker_group import WorkerGroupPool

    return WorkerGroupPool() if config.cluster.num_workers else run_trial
