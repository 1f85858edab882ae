"""How a running search tells of itself: a snapshot, and whoever listens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ofmu.tasks.events import PreparationEvent

if TYPE_CHECKING:
    from tune.results.result import SearchResult
    from tune.study.finished_trial import FinishedTrial


@dataclass(frozen=True)
class Progress:
    """A search at one moment."""

    result: SearchResult
    total: int
    complete: int
    failed: int
    running: tuple[int, ...]
    """Numbers of the trials at work."""
    elapsed: float
    """Seconds of search so far, earlier sessions of a resumed one included."""
    left: float | None
    """Seconds to go at this session's pace; None before its first trial ends."""
    pruned: int = 0
    """Trials stopped early."""

    @property
    def done(self) -> int:
        """Return how many trials are complete, failed or pruned."""
        return self.complete + self.failed + self.pruned


@dataclass(frozen=True, kw_only=True)
class WarmStartLoaded:
    """The search starts from earlier searches."""

    prior: int
    """Trials of earlier searches that inform the sampler."""
    initial: int
    """Settings that run first."""


class SearchListener:
    """Base of whoever follows a search. Every hook is optional and runs in the search's own process.

    What a hook raises is a warning and ends nothing; see :class:`tune.callbacks.callback_list.Audience`.
    """

    def on_prepare(self, event: PreparationEvent | WarmStartLoaded) -> None:
        """Called with the events of the preparation, and after them with the warm start if there is one."""

    def on_start(self, progress: Progress) -> None:
        """The first trials are about to start."""

    def on_progress(self, progress: Progress) -> None:
        """A trial started or ended."""

    def on_trial_end(self, trial: FinishedTrial) -> None:
        """A trial is complete, failed or pruned, and stored as such: once for each that ends.

        A trial that a killed search left finished is told by the search that continues it, after ``on_start``; one
        that was stored but not yet told when the process was killed is told to nobody.
        """

    def on_end(self, result: SearchResult) -> None:
        """The search is over and its files are written."""
