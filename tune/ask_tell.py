"""Searches by hand: ask for a trial, run it however and wherever you like, tell how it ended. No Ray is started."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from optuna.trial import TrialState

from ofmu.errors import ConfigError, PruningRecord, RunError
from ofmu.io.files import write_json
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles, finite_only
from tune.config import SearchConfig, search_config
from tune.results.incremental import RunningResult
from tune.results.report import write_plot, write_tables
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.study.finished_trial import EndedTrial, ended_trial
from tune.study.searcher import FINISHED, StudySearcher, open_study
from tune.study.warm_start import keep_head_start, plant_head_start, read_earlier_runs


@dataclass(frozen=True, kw_only=True)
class AskedTrial:
    """A trial to be run."""

    number: int
    role: str
    """``target`` and ``paper`` for the two landmarks, else ``searched``."""
    settings: dict[str, Any]
    """What this trial sets, by dotted config key."""
    config: UnlearnConfig
    """The whole run, for :func:`ofmu.unlearn` or code of your own."""
    directory: Path
    """Where the trial's files belong; an exported model is taken from its folder ``model``."""


class AskTell:
    """A search whose trials the caller runs: same study, landmarks, proposals and reports as :class:`ParetoSearch`.

    ``config``, ``objectives``, ``num_trials``, ``run_dir`` and ``warm_start`` are those of :class:`ParetoSearch`. The
    directory belongs to this object until :meth:`close`, or the end of its ``with`` block. Its methods may be called
    from several threads. Asked one by one, each told before the next is asked for, trials are exactly those of a
    ParetoSearch with ``search.max_concurrent_trials`` 1. The default objectives need a reference and rows with paraphrased
    and perturbed answers: name others where there are none, since nothing looks at the data here.

    Raises:
        ConfigError: a setting is unknown, out of range, or contradicts another; an earlier run does not fit.
        RunError: ``run_dir`` already holds a run; an earlier run has no complete trial.
        StorageError: the directory cannot be made.
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
        whole = search_config(config, objectives, num_trials, warm_start)
        self._begin(RunDirectory.create_new(run_dir), whole)

    @classmethod
    def resume(cls, run_dir: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Continue a search: trials that were asked for and never told are handed out again, under their numbers.

        One whose directory holds the ``metrics.json`` of a whole run is told by it. ``overrides`` are those of
        :meth:`tune.ParetoSearch.resume`, which continues this search as well, as this does one of its.

        Raises:
            RunError: ``run_dir`` is no search, or another process is at work on it.
            ConfigError: an override would change what is searched.
        """
        search = cls.__new__(cls)
        run = RunDirectory.open_existing(run_dir)
        search._begin(run, run.read_config(overrides))
        return search

    def _begin(self, run: RunDirectory, config: SearchConfig) -> None:
        if config.search.early_stopping.enabled:
            raise ConfigError(
                "search.early_stopping stops runs that a ParetoSearch started, and here the caller runs them: set "
                "search.early_stopping.enabled to false, and tell of stopped trials by prune()"
            )
        self.config, self._run = config, run
        self._mutex = threading.RLock()
        self._asked: dict[int, str] = {}
        self._handed = 0
        self._started, self._earlier_seconds = time.monotonic(), run.seconds()
        is_new = not run.study_file.is_file()
        head_start = read_earlier_runs(config) if is_new and config.search.warm_start else None
        run.mkdir()
        with ExitStack() as stack:
            stack.enter_context(run.lock())
            run.write_config(config)
            if head_start is not None:
                keep_head_start(run, head_start)
            self._study = open_study(run.study_file, config)
            plant_head_start(self._study, config, run)
            self._book = RunningResult(run, config, self._study.get_trials(deepcopy=False, states=FINISHED))
            self._searcher = StudySearcher(self._study, config, run.trial, self._on_finished)
            self._held = stack.pop_all()

    @property
    def run_dir(self) -> Path:
        """Return the directory the search writes to."""
        return self._run.path

    def ask(self) -> AskedTrial | None:
        """Return the next trial; None once ``search.num_trials`` are told or on their way, or the budget is spent.

        Raises:
            StorageError: the study cannot be written.
        """
        with self._mutex:
            self._handed += 1
            key = f"asked-{self._handed}"
            specification = self._searcher.hand_out(key)
            self._raise_storage_error()
            if specification is None:
                return None
            number = int(specification["number"])
            self._asked[number] = key
            attributes = self._study.get_trials(deepcopy=False)[number].user_attrs
            return AskedTrial(
                number=number,
                role=attributes["role"],
                settings=dict(attributes["overrides"]),
                config=UnlearnConfig.model_validate(specification["run"]),
                directory=Path(specification["trial_dir"]),
            )

    def tell(self, trial: AskedTrial | int, metrics: Mapping[str, Any]) -> EndedTrial:
        """Tell what a trial, or the one with this number, scored.

        A missing objective, or one that is no finite number, makes it a failed trial, whose reason says so.
        ``metrics.json`` is written to its directory where the run has not left one.

        Raises:
            RunError: the trial was told before, or never asked for.
            StorageError: a file cannot be written; a resume hands the trial out again.
        """
        # as numbers of Python's own, whatever library they come from
        plain = json.loads(json.dumps(dict(metrics), default=float))
        with self._mutex:
            number = self._asked_number(trial)
            place = self._run.trial(number) / "metrics.json"
            if not place.exists():
                write_json(place, {"metrics": finite_only(plain)})
            return self._end(number, {"metrics": plain})

    def fail(self, trial: AskedTrial | int, reason: str) -> EndedTrial:
        """Tell that a trial failed and why; it counts as one of the search's trials and enters no front.

        Raises:
            RunError: the trial was told before, or never asked for.
            StorageError: the study cannot be written.
        """
        with self._mutex:
            return self._end(self._asked_number(trial), {"failure": reason})

    def prune(
        self, trial: AskedTrial | int, *, round: int, total: int, metrics: Mapping[str, Any] | None = None
    ) -> EndedTrial:
        """Tell that a trial was stopped after ``round`` of its ``total`` rounds; ``metrics`` say what it had cost.

        From :class:`ofmu.errors.PrunedError` these are its account's ``round``, ``total`` and ``metrics``.

        Raises:
            RunError: the trial was told before, or never asked for.
            StorageError: a file cannot be written.
        """
        costs = json.loads(json.dumps(dict(metrics or {}), default=float))
        record = PruningRecord(round=round, total=total, metrics=finite_only(costs))
        with self._mutex:
            number = self._asked_number(trial)
            files = RunFiles(self._run.trial(number))
            record = files.read_pruning_record() or record
            files.write_pruning_record(record)
            return self._end(number, {"pruned": record.to_json()})

    def result(self) -> SearchResult:
        """Return what was found so far, and write the tables and the picture of it.

        Raises:
            StorageError: a file cannot be written.
        """
        with self._mutex:
            result = self._report()
            if len(result.front):
                write_plot(result)
            return result

    def close(self) -> None:
        """Let go of the directory; trials that were not told are handed out again by :meth:`resume`."""
        self._held.close()

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
        known = self._study.get_trials(deepcopy=False)
        if number >= len(known) or number < 0 or known[number].state.name == "WAITING":
            raise RunError(f"There is no trial {number} in {self.run_dir}: tell of trials that ask() has returned")
        if known[number].state.is_finished():
            state = ended_trial(known[number], self.config, self._run.trial(number)).state
            raise RunError(f"Trial {number} was told already, and is {state}: a trial is told once")
        raise RunError(f"Trial {number} has not been asked for since the search was continued: ask() hands it out")

    def _end(self, number: int, outcome: Mapping[str, Any]) -> EndedTrial:
        self._searcher.end(self._asked.pop(number), outcome)
        self._raise_storage_error()
        trial = self._study.get_trials(deepcopy=False)[number]
        return ended_trial(trial, self.config, self._run.trial(number))

    def _raise_storage_error(self) -> None:
        if self._searcher.stopped_by is not None:
            raise self._searcher.stopped_by

    def _on_finished(self, number: int) -> None:
        gone = self._book.add(self._study.get_trials(deepcopy=False)[number])
        self._report()
        self._run.delete_checkpoints(number)
        self._run.delete_models({number, *gone}, self._book.front, self.config.search.keep_models)
        self._run.mark_dirty()

    def _report(self) -> SearchResult:
        result = self._book.result(self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        write_tables(result, self._earlier_seconds + time.monotonic() - self._started)
        return result
