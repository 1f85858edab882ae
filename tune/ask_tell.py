"""A search in the caller's own loop: ask for a trial, run the trial, tell how it ended. Ray is not started."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ofmu.errors import ConfigError, OfmuError, PruningRecord, RunError
from ofmu.evaluation.metrics.registry import REGISTRY
from ofmu.io.plugins import allowed_plugins
from ofmu.io.text import listed
from ofmu.preflight import local_rows
from ofmu.reports.page import write_page_or_warn
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import finite_only
from tune.config import SearchConfig, search_config
from tune.execution.trial_records import TrialOutcome
from tune.preparation import NEEDS_OTHER_ANSWERS, with_objectives_of_rows
from tune.results.page import search_page
from tune.results.report import write_plot
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.rundir.trial_files import TrialFiles, plain_numbers
from tune.session import SearchSession
from tune.study.baselines import with_decided_baselines
from tune.study.checks import check_content
from tune.study.finished_trial import FinishedTrial


@dataclass(frozen=True, kw_only=True)
class AskedTrial:
    """A trial that the caller runs."""

    number: int
    role: str
    """``target`` or ``published`` for the two baselines, else ``sampled``."""
    settings: dict[str, Any]
    """What the trial sets, by dotted config key."""
    config: UnlearnConfig
    """The whole run, for :func:`ofmu.unlearn` or other code."""
    directory: Path
    """The directory of the trial's files. Its folder ``model`` is the model that can be exported."""


class AskTell:
    """A search whose trials the caller runs. Study, baselines, suggestions and reports are those of ParetoSearch.

    This object holds the directory until :meth:`close`, or until the end of its ``with`` block. The methods may be
    called from several threads. If each trial is told before the next is asked for, the trials are exactly those of a
    ParetoSearch with ``search.max_concurrent_trials`` 1. This class hashes the data and the models, so that no resume
    continues on others. If local rows lack the answers that a default objective needs, the search takes the default
    objectives of a search without a reference, and warns. Objectives that the config names stay.

    Args:
        config: as for :class:`tune.ParetoSearch`.
        objectives: replaces ``search.objectives``.
        num_trials: replaces ``search.num_trials``.
        run_dir: a new directory. None: a new directory under ``runs/``.
        warm_start: run directories of earlier searches; replaces ``search.warm_start``.

    Raises:
        ConfigError: a setting is unknown, out of range, or contradicts another setting; or an earlier search does not
        fit. RunError: ``run_dir`` already holds a run, or an earlier search has no complete trial. StorageError: the
        directory cannot be made.
    """

    def __init__(
        self,
        config: SearchConfig | UnlearnConfig | Mapping[str, Any],
        objectives: Mapping[str, str] | None = None,
        num_trials: int | None = None,
        run_dir: str | Path | None = None,
        *,
        warm_start: str | Path | Sequence[str | Path] | None = None,
    ) -> None:
        whole, left_out = with_decided_baselines(search_config(config, objectives, num_trials, warm_start))
        rows = None
        # The caller's own runs may need no rows, so rows that cannot be read are no error.
        with suppress(OfmuError):
            rows = local_rows(whole.unlearn)
        whole, changed = with_objectives_of_rows(whole, rows)
        for note in filter(None, (left_out, changed)):
            warnings.warn(note, stacklevel=2)
        self._begin(RunDirectory.create_new(run_dir), whole, None)

    @classmethod
    def resume(
        cls, run_dir: str | Path, overrides: Sequence[str] = (), *, allow_code: bool | Collection[str] = False
    ) -> Self:
        """Continue a search. Trials that were asked for and never told are asked for again, under the same numbers.

        A trial whose directory holds the ``metrics.json`` of a whole run counts as told. This method also continues a
        ParetoSearch, and :meth:`tune.ParetoSearch.resume` also continues a search of this class.

        Args:
            run_dir: the search's directory.
            overrides: entries such as ``search.num_trials=64``, as for :meth:`tune.ParetoSearch.resume`.
            allow_code: whether modules of the user that the directory's config names are imported, or which of them.

        Raises:
            RunError: ``run_dir`` is not the directory of a search, another process works on it, or the rows, a model,
                the reference or a module of the user has changed since its start.
            ConfigError: an override would change what is searched, or a module of the user may not be imported.
        """
        search, run = cls.__new__(cls), RunDirectory.open_existing(run_dir)
        config = run.read_config(overrides, plugins=allowed_plugins(allow_code))
        search._begin(run, config, check_content(run, config))
        return search

    def _begin(self, run: RunDirectory, config: SearchConfig, content: Mapping[str, str] | None) -> None:
        if config.search.early_stopping.enabled:
            raise ConfigError(
                "search.early_stopping stops runs that a ParetoSearch started, and here the caller runs them: set "
                "search.early_stopping.enabled to false, and report stopped trials with prune()"
            )
        if config.search.checkpoint_selection.enabled:
            raise ConfigError(
                "search.checkpoint_selection selects among rounds of runs that a ParetoSearch started, and here the "
                "caller runs them: set search.checkpoint_selection.enabled to false"
            )
        if config.search.confirm_seeds:
            raise ConfigError(
                "search.confirm_seeds runs points of the front again on Ray, and here the caller runs the trials: set "
                "search.confirm_seeds to 0, and set it with ofmu search --resume when the trials are done"
            )
        self._session = session = SearchSession(run, config, self._on_trial_end)
        self._mutex = threading.RLock()
        self._asked: dict[int, str] = {}
        self._asked_count = 0
        warm_start = session.read_warm_start()
        with ExitStack() as stack:
            stack.enter_context(session.locked(warm_start))
            session.open()
            self._store_content(content)
            if session.recovered:
                session.report()
            self._lock = stack.pop_all()

    def _store_content(self, content: Mapping[str, str] | None) -> None:
        """Store hashes of what the search starts from, so that no resume continues on other rows or models.

        The caller's own runs may need none of them. What cannot be read at the start is therefore no error.
        """
        # This import loads torch, which takes seconds.
        from ofmu.content import content_of

        run, config = self._session.run, self._session.config.unlearn
        if content is None:
            with suppress(OfmuError):
                content = content_of(config)
        if content is not None:
            run.write_content(config, content)

    @property
    def config(self) -> SearchConfig:
        """The search's config."""
        return self._session.config

    @property
    def run_dir(self) -> Path:
        """The directory to which the search writes."""
        return self._session.run.path

    def ask(self) -> AskedTrial | None:
        """Return the next trial; None once enough trials are told or asked for, or the budget is used up.

        Raises:
            RunError: a constraint is a share of the target's value, and the target's trial, the first, is not told yet.
            ConfigError: the target's trial failed, so that such a constraint has no value.
            StorageError: the study cannot be written.
        """
        with self._mutex:
            self._asked_count += 1
            key = f"asked-{self._asked_count}"
            spec = self._session.searcher.next_trial(key)
            self._raise_storage_error()
            if spec is None and self._session.searcher.is_waiting:
                raise RunError(
                    "Tell trial 0, the untouched target, before you ask for another trial: bounds in "
                    "search.constraints are shares of its metrics"
                )
            if spec is None:
                return None
            self._asked[spec.number] = key
            attributes = self._session.study.get_trials(deepcopy=False)[spec.number].user_attrs
            return AskedTrial(
                number=spec.number,
                role=attributes["role"],
                settings=dict(attributes["overrides"]),
                config=spec.run,
                directory=spec.trial_dir,
            )

    def tell(self, trial: AskedTrial | int, metrics: Mapping[str, Any]) -> FinishedTrial:
        """Report the metrics of a trial.

        If an objective is missing or not finite, the trial counts as failed, and its reason says so. A missing one is
        also warned of. If the run has left no ``metrics.json`` in the trial's directory, this method writes the file.

        Args:
            trial: the trial or its number.
            metrics: the trial's metrics, the objectives among them.

        Raises:
            RunError: the trial was told before, or never asked for; or a metric is no number, and the trial stays open.
            StorageError: a file cannot be written. After a resume, the trial is asked for again.
        """
        values = self._told_values(metrics)
        with self._mutex:
            number = self._asked_number(trial)
            TrialFiles(self._session.run.trial(number)).write_metrics_if_missing(values)
            ended = self._complete(number, TrialOutcome(metrics=values))
        if (missing := self._missing_sentence(number, values)) is not None:
            warnings.warn(missing, stacklevel=2)
        return ended

    def fail(self, trial: AskedTrial | int, reason: str) -> FinishedTrial:
        """Report that a trial failed. The trial counts for ``search.num_trials``, but not for the front.

        Args:
            trial: the trial or its number.
            reason: why the trial failed.

        Raises:
            RunError: the trial was told before, or never asked for.
            StorageError: the study cannot be written.
        """
        with self._mutex:
            return self._complete(self._asked_number(trial), TrialOutcome(failure=reason))

    def prune(
        self, trial: AskedTrial | int, *, round: int, total: int, metrics: Mapping[str, Any] | None = None
    ) -> FinishedTrial:
        """Report that a trial was stopped early.

        A :class:`ofmu.errors.PrunedError` has the last three arguments in its record.

        Args:
            trial: the trial or its number.
            round: the trial was stopped after this round.
            total: rounds of a whole run.
            metrics: what the trial had cost.

        Raises:
            RunError: the trial was told before, or never asked for; or a metric is no number, and the trial stays open.
            StorageError: a file cannot be written.
        """
        record = PruningRecord(round=round, total=total, metrics=finite_only(self._told_values(metrics or {})))
        with self._mutex:
            number = self._asked_number(trial)
            files = TrialFiles(self._session.run.trial(number))
            record = files.read_pruning_record() or record
            files.write_pruning_record(record)
            return self._complete(number, TrialOutcome(pruned=record))

    def result(self) -> SearchResult:
        """Return the result so far, and write its tables, its plot and its report.

        Raises:
            StorageError: a file cannot be written.
        """
        with self._mutex:
            result = self._session.report()
            if len(result.front):
                write_plot(result)
                write_page_or_warn(lambda: search_page(result), result.run_dir)
            return result

    def close(self) -> None:
        """Unlock the directory. :meth:`resume` asks again for the trials that were not told."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _asked_number(self, trial: AskedTrial | int) -> int:
        number = trial if isinstance(trial, int) else trial.number
        if number in self._asked:
            return number
        trials = self._session.study.get_trials(deepcopy=False)
        if number >= len(trials) or number < 0 or trials[number].state.name == "WAITING":
            raise RunError(f"There is no trial {number} in {self.run_dir}: report only trials that ask() has returned")
        if trials[number].state.is_finished():
            state = self._session.finished_trial(number).state
            raise RunError(f"Trial {number} was told already, and is {state}: a trial is told once")
        raise RunError(f"Trial {number} has not been asked for since the search was continued: call ask() first")

    def _told_values(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metrics with Python's own numbers. Metrics that only the caller knows may be text.

        Raises:
            RunError: a metric that ofmu reads is no number and not None, or JSON cannot hold a value.
        """
        values: dict[str, Any] = {}
        for name, value in metrics.items():
            try:
                plain = plain_numbers({name: value})
                is_text_allowed = name not in self.config.measured and name not in REGISTRY
                is_right = is_text_allowed or all(isinstance(each, int | float | None) for each in plain.values())
                values |= plain
            except (TypeError, ValueError):
                is_right = False
            if not is_right:
                raise RunError(
                    f"The metric '{name}' is {value!r}, which is no number: tell a number, or None where it has none"
                )
        return values

    def _missing_sentence(self, number: int, values: Mapping[str, Any]) -> str | None:
        """Return the sentence to say if a trial is told without an objective or a constrained metric."""
        config = self.config
        missing = [name for name in config.measured if values.get(name) is None]
        if not missing:
            return None
        key = "search.objectives" if set(missing) & set(config.objectives) else "search.constraints"
        answers = "" if NEEDS_OTHER_ANSWERS.isdisjoint(missing) else ", or give paraphrased and perturbed answers"
        return (
            f"Trial {number} was told without {listed(missing)} and counts as failed: tell every metric of {key}, or "
            f"state others there in a new search{answers}"
        )

    def _complete(self, number: int, outcome: TrialOutcome) -> FinishedTrial:
        self._session.searcher.complete(self._asked.pop(number), outcome)
        self._raise_storage_error()
        return self._session.finished_trial(number)

    def _raise_storage_error(self) -> None:
        if self._session.searcher.stopped_by is not None:
            raise self._session.searcher.stopped_by

    def _on_trial_end(self, number: int) -> None:
        self._session.report()
        self._session.run.mark_dirty(check=False)
