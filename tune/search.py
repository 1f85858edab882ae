"""ParetoSearch: many unlearning runs on Ray Tune, steered by Optuna, to a front of forgetting against utility."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from cluster.session import max_parallel_trials, ray_session
from ofmu.errors import ConfigError, StorageError
from ofmu.io.cache import Cache, cache_root
from ofmu.preflight import check_inputs
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.events import PreparationStarted
from tune.callbacks.base import Progress, WarmStartLoaded
from tune.callbacks.callback_list import Callback, CallbackList
from tune.callbacks.prometheus import PrometheusCallback
from tune.config import SearchConfig, search_config
from tune.execution.trainable import Executor
from tune.execution.tuner import run_trials
from tune.results.incremental import RunningResult, TimeBudget
from tune.results.report import write_plot, write_tables
from tune.results.result import SearchResult
from tune.rundir.prepared import download_into_cache, upload_prepared
from tune.rundir.search_dir import RunDirectory
from tune.rundir.sync import SyncedExecutor
from tune.space.objectives import COSTS, NEEDS_REFERENCE, default_objectives
from tune.study.finished_trial import ended_trial
from tune.study.searcher import FINISHED, StudySearcher, open_study
from tune.study.warm_start import HeadStart, keep_head_start, plant_head_start, read_earlier_runs

if TYPE_CHECKING:
    from ofmu.tasks.preparation import Prepared
    from tune.early_stopping.service import Judging

_SHARE_OF_TABLES, _BURST_OF_TABLES = 0.02, 1.0
"""The share of a search's time that writing its tables may take, and the seconds of it that may come at once."""

_KNOWN_FROM = 0.3
"""The mean probability of the forget answers (to the power of 1/tokens) from which a target is said to know them."""


class ParetoSearch:
    """A search for the Pareto front of two or three objectives.

    ``config`` may be a SearchConfig, an UnlearnConfig (the search's settings are then the defaults) or a mapping;
    ``objectives``, ``num_trials`` and ``warm_start`` (run directories of earlier searches, see
    :mod:`tune.study.warm_start`) replace the config's. ``run_dir`` must be new; None names one under ``runs/``.
    ``executor`` runs one trial (default: :func:`cluster.train.trainer.run_trial` on prepared models, or
    :class:`cluster.train.worker_group.WorkerGroupPool` where ``cluster.num_workers`` asks for a worker group).
    ``callbacks`` are listeners, or plain functions that are called with every :class:`tune.EndedTrial`; what one raises is a warning.

    Raises:
        ConfigError: a setting is unknown, out of range, or contradicts another.
        RunError: ``run_dir`` already holds a run.
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
        self.config = search_config(config, objectives, num_trials, warm_start)
        self._run = RunDirectory.create_new(run_dir)
        self._executor = executor
        self._audience = CallbackList(callbacks)

    @property
    def run_dir(self) -> Path:
        """Return the directory the search writes to."""
        return self._run.path

    def run(self) -> SearchResult:
        """Search until ``search.num_trials`` trials are complete, failed or pruned.

        Raises:
            ClusterError: the Ray cluster is unreachable or too small.
            OfmuError: data or model cannot be prepared; nothing has been written to the run directory then.
        """
        return _Session(self._run, self.config, self._executor, self._audience).start_on_cluster()

    @classmethod
    def resume(
        cls,
        run_dir: str | Path,
        overrides: Sequence[str] = (),
        executor: Executor | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> SearchResult:
        """Continue a search that was killed, or return its result if it is over.

        ``overrides`` such as ``search.num_trials=64`` may change how much, how concurrently and where is searched.

        Raises:
            RunError: ``run_dir`` is no search, or another process is at work on it.
            ConfigError: an override would change what is searched.
        """
        run = RunDirectory.open_existing(run_dir)
        config = run.read_config(overrides)
        session = _Session(run, config, executor, CallbackList(callbacks))
        with run.lock():
            if session.is_over():
                return session.finish()
        return session.start_on_cluster()


class _Session:
    """One process's share of a search: from an open study to its reports."""

    def __init__(
        self,
        run: RunDirectory,
        config: SearchConfig,
        executor: Executor | None,
        audience: CallbackList,
    ) -> None:
        self._run, self._config = run, config
        self._executor, self._audience = executor, audience
        self._settled: list[int] = []
        self._started = time.monotonic()
        self._earlier = run.seconds()
        self._done_before = 0
        self._is_open = False
        self._opened: object = None

    def is_over(self) -> bool:
        """Return whether the study already holds as many finished trials as asked, and none running."""
        if not self._run.study_file.is_file():
            return False
        self._open()
        states = [trial.state.name for trial in self._study.get_trials(deepcopy=False)]
        return self._searcher.has_enough() and "RUNNING" not in states

    def start_on_cluster(self) -> SearchResult:
        """Join the cluster, or start one, and run the trials that are missing."""
        if self._executor is None:
            check_inputs(self._config.unlearn)
        with ray_session(self._config.cluster, self._how_to_go_on):
            return self.start()

    def _how_to_go_on(self) -> str:
        return f"continue with --resume {self._run.display_path}" if self._run.study_file.is_file() else ""

    def start(self) -> SearchResult:
        """Run the trials that are missing, inside a Ray session."""
        # said before models are prepared for it
        max_parallel_trials(self._config.cluster, 1)
        prepared = self._prepare()
        if self._run.uri is not None and self._executor is not None:
            self._executor = SyncedExecutor(self._executor, self._run.uri)
        self._settle_objectives(prepared)
        head_start = self._head_start(prepared)
        self._run.mkdir()
        with self._run.lock():
            self._run.write_config(self._config)
            if head_start is not None:
                keep_head_start(self._run, head_start)
            self._write_reference(prepared)
            if self._run.uri is not None and prepared is not None:
                upload_prepared(prepared, self._run.uri)
            if not self._is_open or self._opened != self._version():
                self._open()
            progress = self._progress()
            self._done_before = progress.done
            self._audience.add(PrometheusCallback())
            self._audience.on_start(progress)
            self._tell_settled()
            self._tune(prepared)
            self._searcher.close("the search ended before this trial did")
            return self.finish()

    def finish(self) -> SearchResult:
        """Write the reports of a search that is over."""
        result = self._report()
        write_plot(result)
        shutil.rmtree(self._run.tune_storage, ignore_errors=True)
        self._tell_settled()
        self._audience.on_end(result)
        return result

    def _open(self) -> None:
        self._study = open_study(self._run.study_file, self._config)
        plant_head_start(self._study, self._config, self._run)
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._run.fetch_trial(trial.number)
        self._book = RunningResult(self._run, self._config, self._study.get_trials(deepcopy=False, states=FINISHED))
        self._tables = TimeBudget(share=_SHARE_OF_TABLES, burst=_BURST_OF_TABLES)
        self._searcher = StudySearcher(self._study, self._config, self._run.trial, self._on_finished)
        self._is_open = True
        self._delete_models(trial.number for trial in self._study.get_trials(deepcopy=False, states=FINISHED))
        self._opened = self._version()

    def _version(self) -> object:
        """Return what tells whether the study, or what is searched, has changed since it was opened."""
        path = self._run.study_file
        state = path.stat() if path.is_file() else None
        return state and (state.st_mtime_ns, state.st_size, id(self._config))

    def _prepare(self) -> Prepared | None:
        """Make the target and the reference once for all trials; an executor of the caller's needs neither."""
        if self._executor is not None:
            if self._config.search.early_stopping.enabled:
                raise ConfigError(
                    "search.early_stopping looks into runs of ofmu's own trainer, and this search has an executor of its own: "
                    "set search.early_stopping.enabled to false"
                )
            return None
        from cluster.train.trainer import run_trial
        from cluster.train.worker_group import WorkerGroupPool
        from ofmu.io.library_logging import silence_libraries
        from ofmu.preparer import prepare

        silence_libraries()
        if self._run.uri is not None and self._run.study_file.is_file():
            download_into_cache(self._run.uri, Cache(cache_root(self._config.unlearn.cache_dir)))

        self._executor = WorkerGroupPool() if self._config.cluster.num_workers else run_trial
        self._audience.on_prepare(PreparationStarted())
        return prepare(self._config.unlearn, callback=self._audience.on_prepare)

    def _settle_objectives(self, prepared: Prepared | None) -> None:
        """Find out on the target's scores what the data can give, before trials are spent on it.

        Rows without paraphrased and perturbed answers have no truth ratio and so no KS statistic: the default
        objectives then become those of a search without a reference; objectives that the user named are refused.
        """
        if prepared is None:
            return
        from ofmu.tasks.load import task_family

        functions = self._config.unlearn.evaluation.custom_metrics
        given = task_family(self._config.data.kind).stored_metrics(
            prepared.target_scores, prepared.reference_scores, functions
        )
        self._warn_of_ignorance(given.values.get("forget_probability"))
        for name in self._config.objectives:
            if name in COSTS or given.values.get(name) is not None:
                continue
            reason = given.reasons.get(name, "it is not among what trials are scored for")
            if self._config.search.objectives is not None or name not in NEEDS_REFERENCE:
                raise ConfigError(
                    f"The objective '{name}' cannot be computed on this data ({reason}): "
                    "name others in search.objectives, such as extraction_strength and model_utility"
                )
            warnings.warn(f"searching extraction_strength in place of {name}: {reason}", stacklevel=2)
            search = self._config.search.model_copy(update={"objectives": default_objectives(has_reference=False)})
            self._config = self._config.model_copy(update={"search": search})

    def _warn_of_ignorance(self, probability: float | None) -> None:
        """Say so where the target that was trained here does not know what it is to forget."""
        if probability is not None and probability < _KNOWN_FROM and not self._config.model.is_target:
            warnings.warn(
                f"the target hardly knows the rows that it is to forget (forget_probability {probability:.2f} before "
                "any unlearning), so that little can be found out on it: raise training.epochs",
                stacklevel=2,
            )

    def _head_start(self, prepared: Prepared | None) -> HeadStart | None:
        """Return what earlier searches give to this one; None where they give nothing, or it has that already."""
        if self._run.study_file.is_file() or not self._config.search.warm_start:
            return None
        head_start = read_earlier_runs(self._config, None if prepared is None else prepared.keys)
        self._audience.on_prepare(WarmStartLoaded(prior=len(head_start.known), initial=len(head_start.first)))
        return head_start

    def _write_reference(self, prepared: Prepared | None) -> None:
        """Store the retrained model's own metrics, for the picture."""
        if prepared is None or prepared.reference_scores is None:
            return
        from ofmu.tasks.load import task_family

        scores = prepared.reference_scores
        given = task_family(self._config.data.kind).stored_metrics(
            scores, scores, self._config.unlearn.evaluation.custom_metrics
        )
        self._run.write_reference(given.values)

    def _tune(self, prepared: Prepared | None) -> None:
        try:
            with self._judging() as judging:
                run_trials(
                    self._searcher,
                    self._config,
                    executor=self._executor,
                    prepared=prepared,
                    storage=self._run.tune_storage,
                    notify=self._notify,
                    judging=judging,
                )
        except StorageError as error:
            raise StorageError("; then ".join(filter(None, (str(error), self._how_to_go_on())))) from error

    @contextmanager
    def _judging(self) -> Iterator[Judging | None]:
        """Hold the process that decides whom to stop early, where the config wants one."""
        settings = self._config.search.early_stopping
        if not settings.enabled:
            yield None
            return
        import ray

        from tune.early_stopping.service import Judging, RemoteBook, open_office

        office = open_office(self._run.rungs_file, self._config.objectives, settings)
        try:
            yield Judging(settings, tuple(self._config.objectives), RemoteBook(office))
        finally:
            ray.kill(office)

    def _on_finished(self, number: int) -> None:
        gone = self._book.add(self._study.get_trials(deepcopy=False)[number])
        self._run.delete_checkpoints(number)
        self._delete_models({number, *gone})
        self._run.mark_dirty()
        if self._is_open:
            # while the study is opened, trials that a killed search left finished are told, and nobody listens yet
            self._notify()
            self._tell_end(number)
        else:
            self._settled.append(number)

    def _tell_settled(self) -> None:
        """Tell of the trials that ended while nobody listened."""
        while self._settled:
            self._tell_end(self._settled.pop(0))

    def _tell_end(self, number: int) -> None:
        trial = self._study.get_trials(deepcopy=False)[number]
        self._audience.on_trial_end(ended_trial(trial, self._config, self._run.trial(number)))

    def _result(self) -> SearchResult:
        return self._book.result(self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def _report(self) -> SearchResult:
        """Write the tables of the search as it stands."""
        started = time.monotonic()
        result = self._result()
        write_tables(result, self._seconds())
        self._tables.spend(time.monotonic() - started)
        return result

    def _delete_models(self, ended: Iterable[int]) -> None:
        self._run.delete_models(ended, self._book.front, self._config.search.keep_models)

    def _notify(self) -> None:
        if self._tables.is_due():
            self._report()
        self._run.mark_dirty(check=False)
        self._audience.on_progress(self._progress())

    def _progress(self) -> Progress:
        result, counts = self._result(), self._book.counts
        running = tuple(trial.number for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        total = self._searcher.expected_total()
        done = counts.total()
        newly = done - self._done_before
        pace = (time.monotonic() - self._started) / newly if newly > 0 else None
        left = None if pace is None else pace * max(total - done, 0)
        return Progress(
            result, total, counts["complete"], counts["failed"], running, self._seconds(), left, counts["pruned"]
        )

    def _seconds(self) -> float:
        return self._earlier + time.monotonic() - self._started
