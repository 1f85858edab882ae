"""Hooks into Ray Tune's loop: report crashed trials, and stop the search after a failed write."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune as ray_tune

from ofmu.engine.device import LESS_MEMORY
from ofmu.errors import StorageError
from ofmu.io.files import storage_errors
from tune.execution.trial_source import TrialSource
from tune.rundir.trial_files import TrialFiles

_ACTOR = re.compile(r"actor_id: (\w+)")


class TrialErrorCallback(ray_tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Tell the trial source why a trial crashed. Call ``on_start`` when a trial starts.

    A write that fails stops the source. As an exception, Ray Tune would print it with its stack and end in an error of
    its own.
    """

    def __init__(self, source: TrialSource[Any], on_start: Callable[[], None], max_failures: int = 0) -> None:
        self._source, self._on_start, self._max_failures = source, on_start, max_failures
        self._deaths: Counter[str] = Counter()
        """Deaths of each trial's processes after which the trial was handed out again, by the trial's directory."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray Tune pickles its callbacks for its own restore, which is never used."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report that a trial runs."""
        with self._stopping_on_failed_writes():
            self._on_start()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Store a crash that is not retried, or not any more. Hand out a trial again that died before it ran.

        Ray Tune gives a trial the process of an earlier one. If that process is dead, Ray Tune counts the death twice,
        for the process and for its task, and ends the trial at the second time, since it retries running trials only.
        """
        directory, text = Path(trial.config["trial_dir"]), _error_text(trial)
        if self._may_run_again(str(directory), text):
            deaths = _failures(text)
            if len(deaths) == len(set(deaths)):  # Otherwise Ray Tune has announced another try.
                self.on_trial_recover(iteration, trials, trial)
            self._deaths[str(directory)] += len(set(deaths))
            self._source.take_back(trial.trial_id)
            return
        with self._stopping_on_failed_writes(), storage_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            if text:
                TrialFiles(directory).write_error(text)
        self._source.fail(trial.trial_id, crash_reason(text))

    def _may_run_again(self, directory: str, text: str) -> bool:
        if not _process_died(_last_failure(text)):
            return False
        deaths = self._deaths[directory] + len(set(_failures(text)))
        return self._max_failures < 0 or deaths <= self._max_failures

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Warn of a crash that is retried."""
        reason = crash_reason(_error_text(trial))
        warnings.warn(f"trial {trial.config['number']} is tried again: {reason}", stacklevel=2)

    @contextmanager
    def _stopping_on_failed_writes(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            self._source.stopped_by = error


class StorageErrorStopper(ray_tune.Stopper):  # type: ignore[misc]  # Ray ships no types
    """Stop all trials after a failed write."""

    def __init__(self, source: TrialSource[Any]) -> None:
        self._source = source

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether a write has failed."""
        return self._source.stopped_by is not None


def _error_text(trial: Any) -> str:
    """Return the text that Ray Tune keeps of a trial's failures."""
    if trial.error_file and Path(trial.error_file).is_file():
        return Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
    return ""


def _failures(text: str) -> list[str]:
    """Return one word per failure: the actor that died, or else the place of the failure in the text."""
    failures = text.split("Failure #")[1:]
    found = (_ACTOR.search(failure) for failure in failures)
    return [match[1] if match else str(index) for index, match in enumerate(found)]


def _last_failure(text: str) -> str:
    return text.rpartition("Failure #")[2]


def _process_died(failure: str) -> bool:
    return "actor died" in failure or "actor is dead" in failure or "unavailable" in failure


def crash_reason(text: str) -> str:
    """Return one line on why a trial's process failed, from the text that Ray Tune keeps of the trial's failures."""
    last = _last_failure(text)
    lines = [line.strip() for line in last.splitlines() if line.strip()]
    if "CUDA out of memory" in last:
        return f"the GPU ran out of memory: {LESS_MEMORY}"
    if "OutOfMemoryError" in last or "running low on memory" in last:
        return "out of memory: Ray killed the trial's process; lower method.batch_size or search.max_concurrent_trials"
    if "in its creation task" in last:
        return f"the trial's process could not start: {lines[-1]}"
    if _process_died(last):
        return "the trial's process died: the machine ran out of memory, or something killed the process"
    return lines[-1] if lines else "the trial's process failed without a message"
