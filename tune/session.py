"""What a search on Ray and a search in the caller's own loop share: the open study, the result so far, the reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ofmu.errors import ConfigError
from tune.config import SearchConfig
from tune.results.incremental import RunningResult
from tune.results.report import write_tables
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.space.constraints import Limits, resolve_limits
from tune.study.finished_trial import FinishedTrial, finished_trial
from tune.study.limits import read_limits
from tune.study.searcher import FINISHED, StudySearcher, open_study
from tune.study.warm_start import WarmStart, apply_warm_start, check_warm_start, read_warm_start, store_warm_start


class SearchSession:
    """The work of one process on one search.

    Use it in this order: :meth:`read_warm_start`, :meth:`locked`, and inside the lock :meth:`open`. The attributes
    ``study`` and ``searcher`` exist after :meth:`open`.

    Args:
        run: the directory of the search.
        config: the search. It may be replaced until :meth:`open`.
        on_trial_end: called with the number of each trial that ends after :meth:`open`.
    """

    study: optuna.Study
    searcher: StudySearcher

    def __init__(
        self, run: RunDirectory, config: SearchConfig, on_trial_end: Callable[[int], None] = lambda number: None
    ) -> None:
        self.run, self.config = run, config
        self.target: Mapping[str, Any] = {}
        """The metrics of the untouched target that the preparation has measured. Set it before :meth:`open`."""
        self.recovered: list[int] = []
        """Numbers of the trials that an earlier process finished, and whose end :meth:`open` stored."""
        self._on_trial_end = on_trial_end
        self._started, self._earlier_seconds = time.monotonic(), run.seconds()
        self._opened: tuple[SearchConfig, object] | None = None
        self._config_is_stale = False
        """Whether the directory holds a config of an earlier start, which is replaced once the study has opened."""

    @property
    def has_study(self) -> bool:
        """Whether the search was started before."""
        return self.run.study_file.is_file()

    def check_warm_start(self) -> None:
        """Check the earlier searches of a new search, before anything is started or prepared.

        Raises:
            RunError: there is no such earlier search, or none of its trials is complete.
            ConfigError: an earlier search had another method or other objectives.
        """
        if not self.has_study:
            check_warm_start(self.config)

    def read_warm_start(self, keys: Mapping[str, str] | None = None) -> WarmStart | None:
        """Return what earlier searches give to a new search; None for a resumed search or without a warm start.

        Args:
            keys: the cache keys of the search's preparation, if there is one.

        Raises:
            RunError: there is no such earlier search, or none of its trials is complete.
            ConfigError: an earlier search had another method or other objectives, or a constraint waits for the target.
        """
        if self.has_study or not self.config.search.warm_start:
            return None
        _, unknown = resolve_limits(self.config.search.constraints, self.target)
        if unknown:
            raise ConfigError(
                f"The bound of search.constraints.{unknown[0]} is a share of the target's value, which is not known "
                "before the first trial ends, and search.warm_start needs it earlier: give a number"
            )
        return read_warm_start(self.config, keys)

    @contextmanager
    def locked(self, warm_start: WarmStart | None) -> Iterator[None]:
        """Make and lock the directory, and write the config and the warm start.

        Raises:
            RunError: another process works on the directory.
            StorageError: a file cannot be written.
        """
        self.run.mkdir()
        with self.run.lock():
            # A resume that is refused must leave everything as it is.
            self._config_is_stale = self.run.config_file.is_file()
            if not self._config_is_stale:
                self.run.write_config(self.config)
            if warm_start is not None:
                store_warm_start(self.run, warm_start)
            yield

    def open(self) -> None:
        """Open the study. Do nothing if the study is open, and neither the study nor the config has changed since.

        Call this under the directory's lock.
        """
        if self._opened is not None and self._opened[0] is self.config and self._opened[1] == self._study_version():
            self._replace_stale_config()
            return
        self._opened = None
        self.study = open_study(self.run.study_file, self.config, self.target)
        apply_warm_start(self.study, self.config, self.run)
        self._replace_stale_config()
        for trial in self.running_trials():
            self.run.fetch_trial(trial.number)
        finished = self.study.get_trials(deepcopy=False, states=FINISHED)
        self._running_result = RunningResult(self.run, self.config, finished, self._limits)
        self.searcher = StudySearcher(self.study, self.config, self.run.trial, self._finish_trial, self.seconds)
        self._delete_models({trial.number for trial in self.study.get_trials(deepcopy=False, states=FINISHED)})
        self._opened = self.config, self._study_version()

    def _limits(self) -> Limits:
        return read_limits(self.study, self.config) or ()

    def _replace_stale_config(self) -> None:
        """Store the config with the overrides of this start, once the study has shown that it can be continued."""
        if self._config_is_stale:
            self.run.write_config(self.config)
            self._config_is_stale = False

    def running_trials(self) -> list[FrozenTrial]:
        """Return the trials that run."""
        trials: list[FrozenTrial] = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return trials

    def finished_trial(self, number: int) -> FinishedTrial:
        """Return a trial that has finished."""
        return finished_trial(self.study.get_trials(deepcopy=False)[number], self.config, self.run.trial(number))

    @property
    def counts(self) -> Mapping[str, int]:
        """Finished trials by state: complete, failed, pruned."""
        return self._running_result.counts

    @property
    def mean_trial_seconds(self) -> float | None:
        """The mean seconds of the finished trials, but for the target's; None if no trial has told them."""
        return self._running_result.mean_seconds

    def result(self) -> SearchResult:
        """Return the result so far."""
        return self._running_result.result(self.running_trials())

    def report(self) -> SearchResult:
        """Write the tables of the result so far, and return the result.

        Raises:
            StorageError: a file cannot be written.
        """
        result = self.result()
        write_tables(result, self.seconds(), is_over=self.is_over())
        return result

    def is_over(self) -> bool:
        """Return whether the search needs no further trial, and none runs."""
        return self.searcher.budget_reached() and not self.running_trials()

    def seconds(self) -> float:
        """Return how long the search has run, in seconds, with the time of earlier processes."""
        return self._earlier_seconds + time.monotonic() - self._started

    def seconds_here(self) -> float:
        """Return how long this process has worked on the search, in seconds."""
        return time.monotonic() - self._started

    def _finish_trial(self, number: int) -> None:
        """Update the result after a trial's end is stored, and delete what is not needed any more."""
        dominated = self._running_result.add(self.study.get_trials(deepcopy=False)[number])
        self.run.delete_checkpoints(number)
        self._delete_models({number, *dominated})
        self.run.mark_dirty()
        if self._opened is None:
            self.recovered.append(number)
        else:
            self._on_trial_end(number)

    def _delete_models(self, numbers: set[int]) -> None:
        self.run.delete_models(numbers, self._running_result.front, self.config.search.keep_models)

    def _study_version(self) -> object:
        """Return a value that changes when the study's file changes."""
        stat = self.run.study_file.stat() if self.has_study else None
        return stat and (stat.st_mtime_ns, stat.st_size)
