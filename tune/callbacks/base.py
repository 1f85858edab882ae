"""The callback interface of a search, and the hook into Ray Tune's loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ray import tune as ray_tune

from ofmu.io.files import write_text
from ofmu.tasks.events import PreparationEvent

if TYPE_CHECKING:
    from ofmu.errors import StorageError
    from tune.results.result import SearchResult
    from tune.study.finished_trial import EndedTrial


class TrialSource(Protocol):
    """A searcher that hands out specifications of :class:`tune.execution.trainable.UnlearningTrial`."""

    stopped_by: StorageError | None
    """Set once a disk refuses a write: nothing more is handed out."""

    def fail(self, trial_id: str, reason: str) -> None:
        """Take note that a trial crashed for good."""


@dataclass(frozen=True)
class Progress:
    """The state of a running search."""

    result: SearchResult
    total: int
    """Number of trials that the search is expected to have."""
    complete: int
    failed: int
    running: tuple[int, ...]
    """Numbers of the running trials."""
    elapsed: float
    """Seconds of search, over all sessions."""
    remaining: float | None
    """Estimated seconds to the end, at this session's pace; None before a trial of this session ends."""
    pruned: int = 0
    """Number of trials that early stopping ended."""

    @property
    def done(self) -> int:
        """Number of trials that are complete, failed or pruned."""
        return self.complete + self.failed + self.pruned


@dataclass(frozen=True, kw_only=True)
class WarmStartLoaded:
    """The preparation event of a search that starts from earlier searches."""

    prior: int
    """Number of earlier trials that inform the sampler."""
    initial: int
    """Number of settings that run first."""


class SearchCallback:
    """Base class of a search's callbacks. Every hook is optional, and runs in the search's own process.

    An exception in a hook becomes a warning; see :class:`tune.callbacks.callback_list.CallbackList`.
    """

    def on_prepare(self, event: PreparationEvent | WarmStartLoaded) -> None:
        """Called with each event of the preparation, and then with the warm start, if there is one."""

    def on_start(self, progress: Progress) -> None:
        """Called before the first trials start."""

    def on_progress(self, progress: Progress) -> None:
        """Called after a trial started or ended."""

    def on_trial_end(self, trial: EndedTrial) -> None:
        """Called once for every trial that is complete, failed or pruned, after the trial was stored.

        If a search is killed after a trial finished and before the trial was stored, the resumed search calls this
        hook after :meth:`on_start`. If the search is killed after the trial was stored and before this call, the call
        is lost.
        """

    def on_end(self, result: SearchResult) -> None:
        """Called after the search ended and its files were written."""


class TuneWatcher(ray_tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Tells the searcher why a trial crashed, and listeners that one started."""

    def __init__(self, searcher: TrialSource, notify: Callable[[], None]) -> None:
        self._searcher, self._notify = searcher, notify

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks for a restore of its own, which is never used."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Pass on that a trial is at work."""
        self._notify()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a crash that was not, or no longer, worth another try."""
        directory = Path(trial.config["trial_dir"])
        directory.mkdir(parents=True, exist_ok=True)
        account = _account_of(trial)
        if account:
            write_text(directory / "error.txt", account)
        self._searcher.fail(trial.trial_id, crash_reason(account))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Warn of a crash that is worth another try."""
        reason = crash_reason(_account_of(trial))
        warnings.warn(f"trial {trial.config['number']} is tried again: {reason}", stacklevel=2)


class StopWithSearcher(ray_tune.Stopper):  # type: ignore[misc]  # Ray ships no types
    """Stops the whole search once its searcher has been stopped."""

    def __init__(self, searcher: TrialSource) -> None:
        self._searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether a disk has refused a write."""
        return self._searcher.stopped_by is not None


def _account_of(trial: Any) -> str:
    """Return the text that Tune keeps of a trial's failures."""
    if trial.error_file and Path(trial.error_file).is_file():
        return Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
    return ""


def crash_reason(account: str) -> str:
    """Return one line on why a trial's process failed, from the text that Tune keeps of its failures."""
    last = account.rpartition("Failure #")[2]
    lines = [line.strip() for line in last.splitlines() if line.strip()]
    if "OutOfMemoryError" in last or "running low on memory" in last:
        return "out of memory: Ray killed the trial's process; lower method.batch_size or search.max_concurrent_trials"
    if "in its creation task" in last:
        return f"the trial's process could not start: {lines[-1]}"
    if "actor died" in last or "actor is dead" in last or "unavailable" in last:
        return "the trial's process died, as when memory runs out or someone kills it"
    return lines[-1] if lines else "the trial's process failed without an account"
