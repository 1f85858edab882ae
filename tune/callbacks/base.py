"""The callback interface of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ofmu.tasks.events import PreparationEvent

if TYPE_CHECKING:
    from tune.results.result import SearchResult
    from tune.study.finished_trial import FinishedTrial


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


@dataclass(frozen=True, kw_only=True)
class EngineDecided:
    """The first event of a new search whose engine has settings that are ``auto``."""

    sentence: str
    """What was decided, and why."""


SearchPreparationEvent = PreparationEvent | WarmStartLoaded | EngineDecided


class SearchCallback:
    """Base class of a search's callbacks. Every hook is optional, and runs in the search's own process.

    An exception in a hook becomes a warning; see :class:`tune.callbacks.callback_list.CallbackList`.
    """

    def on_prepare(self, event: SearchPreparationEvent) -> None:
        """Called with what was decided about the engine, with each event of the preparation, and with the warm start.

        The first and the last come only if there is something to decide, and a warm start.
        """

    def on_start(self, progress: Progress) -> None:
        """Called before the first trials start."""

    def on_progress(self, progress: Progress) -> None:
        """Called after a trial started or ended."""

    def on_trial_end(self, trial: FinishedTrial) -> None:
        """Called once for every trial that is complete, failed or pruned, after the trial was stored.

        If a search is killed after a trial finished and before the trial was stored, the resumed search calls this
        hook after :meth:`on_start`. If the search is killed after the trial was stored and before this call, the call
        is lost.
        """

    def on_confirm(self, done: int, total: int) -> None:
        """Called before points of the front run again on further seeds, and after each of these runs.

        Args:
            done: number of runs that are done.
            total: number of runs; 0 if the search asks for none.
        """

    def on_end(self, result: SearchResult) -> None:
        """Called after the search ended and its files were written."""
