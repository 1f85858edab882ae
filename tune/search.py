"""ParetoSearch: many unlearning runs on Ray Tune, steered by Optuna, to a front of forgetting against utility."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from cluster.session import ray_session, trials_at_a_time
from ofmu.config import UnlearnConfig
from ofmu.config_io import validate
from ofmu.errors import ConfigError, StorageError
from ofmu.files import write_json
from tune.config import SearchConfig
from tune.launch import run_trials
from tune.objectives import COSTS, NEEDS_REFERENCE, default_objectives
from tune.progress import Progress, SearchListener
from tune.remote import RemoteTrials, share_prepared
from tune.report import write_picture, write_tables
from tune.result import SearchResult
from tune.rundir import RunDirectory
from tune.study import StudySearcher, open_study
from tune.trial import Executor

if TYPE_CHECKING:
    from ofmu.reference import Prepared
    from tune.judge import Judging


class ParetoSearch:
    """A search for the Pareto front of two or three objectives.

    ``config`` may be a SearchConfig, an UnlearnConfig (the search's settings are then the defaults) or a mapping;
    ``objectives`` and ``num_trials`` replace the config's. ``run_dir`` must be new; None names one under ``runs/``.
    ``executor`` runs one trial (default: :func:`cluster.train.run_trial` on prepared models, or
    :class:`cluster.group.WarmTrials` where ``cluster.num_workers`` asks for a worker group); ``callbacks`` listen.

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
        callbacks: Sequence[SearchListener] = (),
    ) -> None:
        mapping = config.model_dump(mode="json") if isinstance(config, UnlearnConfig) else dict(config)
        search = dict(mapping.get("search") or {})
        if objectives is not None:
            search["objectives"] = dict(objectives)
        if num_trials is not None:
            search["num_trials"] = num_trials
        self.config = validate(SearchConfig, {**mapping, "search": search})
        self._run = RunDirectory.fresh(run_dir)
        self._executor = executor
        self._callbacks = tuple(callbacks)

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
        with ray_session(self.config.cluster):
            return _Session(self._run, self.config, self._executor, self._callbacks).start()

    @classmethod
    def resume(
        cls,
        run_dir: str | Path,
        overrides: Sequence[str] = (),
        executor: Executor | None = None,
        callbacks: Sequence[SearchListener] = (),
    ) -> SearchResult:
        """Continue a search that was killed, or return its result if it is over.

        ``overrides`` such as ``search.num_trials=64`` may change how much, how concurrently and where is searched.

        Raises:
            RunError: ``run_dir`` is no search, or another process is at work on it.
            ConfigError: an override would change what is searched.
        """
        run = RunDirectory.existing(run_dir)
        config = run.read_config(overrides)
        session = _Session(run, config, executor, callbacks)
        with run.lock():
            if session.is_over():
                return session.finish()
        with ray_session(config.cluster):
            return session.start()


class _Session:
    """One process's share of a search: from an open study to its reports."""

    def __init__(
        self,
        run: RunDirectory,
        config: SearchConfig,
        executor: Executor | None,
        callbacks: Sequence[SearchListener],
    ) -> None:
        self._run, self._config = run, config
        self._executor, self._callbacks = executor, callbacks
        self._started = time.monotonic()
        self._earlier = _earlier_seconds(run)
        self._done_before = 0
        self._is_open = False

    def is_over(self) -> bool:
        """Return whether the study already holds as many finished trials as asked, and none running."""
        if not self._run.study_file.is_file():
            return False
        self._open()
        states = [trial.state.name for trial in self._study.get_trials(deepcopy=False)]
        return self._searcher.has_enough() and "RUNNING" not in states

    def start(self) -> SearchResult:
        """Run the trials that are missing, inside a Ray session."""
        concurrent = trials_at_a_time(self._config.cluster, self._config.search.max_concurrent)
        prepared = self._prepare()
        if self._run.uri is not None and self._executor is not None:
            self._executor = RemoteTrials(self._executor, self._run.uri)
        self._settle_objectives(prepared)
        self._run.create()
        with self._run.lock():
            self._run.write_config(self._config)
            self._write_reference(prepared)
            if self._run.uri is not None and prepared is not None:
                share_prepared(prepared, self._run.uri)
            self._open()
            progress = self._progress()
            self._done_before = progress.done
            for listener in self._callbacks:
                listener.on_start(progress)
            self._tune(concurrent, prepared)
            self._searcher.close("the search ended before this trial did")
            return self.finish()

    def finish(self) -> SearchResult:
        """Write the reports of a search that is over."""
        result = self._report()
        write_picture(result)
        shutil.rmtree(self._run.path / "ray", ignore_errors=True)
        for listener in self._callbacks:
            listener.on_end(result)
        return result

    def _open(self) -> None:
        self._study = open_study(self._run.study_file, self._config)
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._run.fetch_trial(trial.number)
        self._searcher = StudySearcher(self._study, self._config, self._run.trial, self._on_finished)
        self._is_open = True

    def _prepare(self) -> Prepared | None:
        """Make the target and the reference once for all trials; an executor of the caller's needs neither."""
        if self._executor is not None:
            if self._config.search.rungs.enabled:
                raise ConfigError(
                    "search.rungs looks into runs of ofmu's own trainer, and this search has an executor of its own: "
                    "set search.rungs.enabled to false"
                )
            return None
        from cluster.group import WarmTrials
        from cluster.train import run_trial
        from ofmu.quiet import quiet_libraries
        from ofmu.reference import prepare

        quiet_libraries()

        def tell(event: Mapping[str, Any]) -> None:
            for listener in self._callbacks:
                listener.on_prepare(event)

        self._executor = WarmTrials() if self._config.cluster.num_workers else run_trial
        tell({"event": "start"})
        return prepare(self._config.unlearn, listener=tell)

    def _settle_objectives(self, prepared: Prepared | None) -> None:
        """Find out on the target's scores what the data can give, before trials are spent on it.

        Rows without paraphrased and perturbed answers have no truth ratio and so no KS statistic: the default
        objectives then become those of a search without a reference; objectives that the user named are refused.
        """
        if prepared is None:
            return
        from ofmu.task import stored_metrics

        functions = self._config.unlearn.evaluation.functions
        given = stored_metrics(self._config.data.kind, prepared.target_scores, prepared.reference_scores, functions)
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

    def _write_reference(self, prepared: Prepared | None) -> None:
        """Store the retrained model's own metrics, for the picture."""
        if prepared is None or prepared.reference_scores is None:
            return
        from ofmu.task import stored_metrics

        scores = prepared.reference_scores
        given = stored_metrics(self._config.data.kind, scores, scores, self._config.unlearn.evaluation.functions)
        write_json(self._run.path / "reference.json", dict(given.values))

    def _tune(self, concurrent: int, prepared: Prepared | None) -> None:
        try:
            with self._judging() as judging:
                run_trials(
                    self._searcher,
                    self._config,
                    executor=self._executor,
                    prepared=prepared,
                    concurrent=concurrent,
                    storage=self._run.path / "ray",
                    notify=self._notify,
                    judging=judging,
                )
        except StorageError as error:
            raise StorageError(f"{error}; then continue with --resume {self._run.place}") from error

    @contextmanager
    def _judging(self) -> Iterator[Judging | None]:
        """Hold the process that decides whom to stop early, where the config wants one."""
        settings = self._config.search.rungs
        if not settings.enabled:
            yield None
            return
        import ray

        from tune.judge import Judging, RemoteBook, open_office

        office = open_office(self._run.rungs_file, self._config.objectives, settings)
        try:
            yield Judging(settings, tuple(self._config.objectives), RemoteBook(office))
        finally:
            ray.kill(office)

    def _on_finished(self, number: int) -> None:
        result = self._report()
        self._run.delete_checkpoints(number)
        self._delete_models(result)
        self._run.changed()
        if self._is_open:
            # while the study is opened, trials that a killed search left finished are told, and nobody listens yet
            self._notify(result)

    def _report(self) -> SearchResult:
        result = SearchResult.of(self._run, self._config, self._study.get_trials(deepcopy=False))
        write_tables(result, self._seconds())
        return result

    def _delete_models(self, result: SearchResult) -> None:
        keep = self._config.search.keep_models
        kept = set(result.front["trial"]) if keep == "front" else set()
        if keep != "all":
            for number in result.trials.loc[result.trials["state"] != "running", "trial"]:
                if number not in kept:
                    self._run.delete_model(int(number))

    def _notify(self, result: SearchResult | None = None) -> None:
        self._run.changed(check=False)
        progress = self._progress(result)
        for listener in self._callbacks:
            listener.on_progress(progress)

    def _progress(self, result: SearchResult | None = None) -> Progress:
        if result is None:
            result = SearchResult.of(self._run, self._config, self._study.get_trials(deepcopy=False))
        states = result.trials["state"]
        complete, failed, pruned = (int((states == state).sum()) for state in ("complete", "failed", "pruned"))
        total = self._searcher.expected_total()
        done = complete + failed + pruned
        newly = done - self._done_before
        pace = (time.monotonic() - self._started) / newly if newly > 0 else None
        running = tuple(int(number) for number in result.trials.loc[states == "running", "trial"])
        left = None if pace is None else pace * max(total - done, 0)
        return Progress(result, total, complete, failed, running, self._seconds(), left, pruned)

    def _seconds(self) -> float:
        return self._earlier + time.monotonic() - self._started


def _earlier_seconds(run: RunDirectory) -> float:
    path = run.path / "search.json"
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else 0.0
