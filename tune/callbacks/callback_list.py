"""Those who follow a search, as one: what one of them raises reaches neither the others nor the study."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofmu.errors import ConfigError
from ofmu.tasks.events import PreparationEvent
from tune.callbacks.base import Progress, SearchListener, WarmStartLoaded
from tune.study.finished_trial import FinishedTrial

if TYPE_CHECKING:
    from tune.results.result import SearchResult

Callback = SearchListener | Callable[[FinishedTrial], Any]
"""A listener, or a plain function that is called with every trial that ends."""


class Audience(SearchListener):
    """Passes on what happens to every callback, in order.

    An exception that a callback raises is a warning, the first time that this callback raises one, and the search
    goes on: hours of trials must not hang on a plot or a logger. The callback goes on being called.
    KeyboardInterrupt and SystemExit do end the search; a resume continues it.

    Raises:
        ConfigError: a callback is neither a listener nor a function.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._listeners = [_as_listener(position, each) for position, each in enumerate(callbacks)]
        self._warned_of: set[int] = set()

    def add(self, listener: SearchListener) -> None:
        """Let one more listen, after the others."""
        self._listeners.append(listener)

    def on_prepare(self, event: PreparationEvent | WarmStartLoaded) -> None:
        """Pass it on."""
        self._each(lambda listener: listener.on_prepare(event))

    def on_start(self, progress: Progress) -> None:
        """Pass it on."""
        self._each(lambda listener: listener.on_start(progress))

    def on_progress(self, progress: Progress) -> None:
        """Pass it on."""
        self._each(lambda listener: listener.on_progress(progress))

    def on_trial_end(self, trial: FinishedTrial) -> None:
        """Pass it on."""
        self._each(lambda listener: listener.on_trial_end(trial))

    def on_end(self, result: SearchResult) -> None:
        """Pass it on."""
        self._each(lambda listener: listener.on_end(result))

    def _each(self, call: Callable[[SearchListener], None]) -> None:
        for listener in self._listeners:
            try:
                call(listener)
            except Exception as error:
                # whatever a user's callback does wrong: theirs to mend, and no trial's fault
                if id(listener) not in self._warned_of:
                    self._warned_of.add(id(listener))
                    warnings.warn(_sentence(listener, error), stacklevel=3)


class _TrialFunction(SearchListener):
    """A plain function that hears of trials that end."""

    def __init__(self, function: Callable[[FinishedTrial], Any]) -> None:
        self._function = function

    def __str__(self) -> str:
        return getattr(self._function, "__qualname__", type(self._function).__name__)

    def on_trial_end(self, trial: FinishedTrial) -> None:
        """Call the function."""
        self._function(trial)


def _as_listener(position: int, callback: Callback) -> SearchListener:
    if isinstance(callback, SearchListener):
        return callback
    if callable(callback) and not isinstance(callback, type):
        return _TrialFunction(callback)
    raise ConfigError(
        f"callbacks[{position}] is {callback!r}, which is neither a tune.SearchListener nor a function of one ended "
        "trial: give an instance or a function"
    )


def _sentence(listener: SearchListener, error: Exception) -> str:
    name = str(listener) if isinstance(listener, _TrialFunction) else type(listener).__name__
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"The callback {name} raised {type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
        "; the search goes on"
    )
