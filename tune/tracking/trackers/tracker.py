"""What all trackers share: when they are called, and what they are told of a trial and of the whole search."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from ofmu.run_files import HISTORY, REPORT
from tune.callbacks.base import Progress, SearchCallback
from tune.config import SearchConfig
from tune.results.result import SearchResult
from tune.rundir.search_files import FRONT_PLOT, FRONT_TABLE, TRIALS_TABLE
from tune.study.finished_trial import FinishedTrial

ARTIFACTS = (FRONT_PLOT, FRONT_TABLE, TRIALS_TABLE, REPORT)
"""The files of a finished search that a tracker keeps."""


class Tracker(SearchCallback, ABC):
    """One tracker of one search. The search is a run of the tracker, and its trials are runs below it.

    A trial is told once it has ended, by the search's own process. Ray's loggers would tell what trials report to Ray
    Tune while they run, but trials report to no one else than their own files.

    Args:
        folder: the search's directory on this machine.
        config: the search.
    """

    def __init__(self, folder: Path, config: SearchConfig) -> None:
        self.folder, self.config = folder, config
        self.search_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        """The same for every session of one search, so that a resumed search continues its runs."""
        self._is_open = False

    @abstractmethod
    def open(self) -> None:
        """Start or continue the run of the search."""

    @abstractmethod
    def log_search(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of the search after ``step`` trials have ended."""

    @abstractmethod
    def log_trial(self, trial: FinishedTrial) -> None:
        """Log a trial that has ended."""

    @abstractmethod
    def close(self, result: SearchResult, artifacts: list[Path]) -> None:
        """Log the result of the search, keep its files, and end its run."""

    def on_start(self, progress: Progress) -> None:
        """Start or continue the run of the search."""
        self._open()
        self.on_progress(progress)

    def on_progress(self, progress: Progress) -> None:
        """Log the counts of trials and the hypervolume."""
        self._open()
        self.log_search(
            progress.done,
            {
                "hypervolume": progress.result.hypervolume,
                "trials/complete": float(progress.complete),
                "trials/failed": float(progress.failed),
                "trials/pruned": float(progress.pruned),
            },
        )

    def on_trial_end(self, trial: FinishedTrial) -> None:
        """Log the trial."""
        self._open()
        self.log_trial(trial)

    def on_end(self, result: SearchResult) -> None:
        """Log the result, and end the run of the search."""
        self._open()
        self.close(result, [self.folder / name for name in ARTIFACTS if (self.folder / name).is_file()])
        self._is_open = False

    def _open(self) -> None:
        if not self._is_open:
            self.open()
            self._is_open = True


def trial_name(trial: FinishedTrial) -> str:
    """Return a trial's name, which sorts by number."""
    return f"trial-{trial.number:05d}"


def numbers_of(trial: FinishedTrial) -> dict[str, float]:
    """Return the finite metrics of a trial."""
    return {name: float(value) for name, value in trial.metrics.items() if _is_finite(value)}


def curves_of(trial: FinishedTrial) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the outer step and the finite numbers of each round of a trial. A damaged line is left out.

    Of a search at a URI, the files of trials are not on this machine, so there are no curves.
    """
    history = trial.directory / HISTORY
    if not history.is_file():
        return
    for line in history.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, TypeError, KeyError):
            record = dict(json.loads(line))
            step = int(record.pop("outer_step"))
            yield step, {name: float(value) for name, value in record.items() if _is_finite(value)}


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
