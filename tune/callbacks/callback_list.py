"""A list of callbacks that acts as one callback, and that turns the callbacks' exceptions into warnings."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofmu.errors import ConfigError
from tune.callbacks.base import Progress, SearchCallback, SearchPreparationEvent
from tune.study.finished_trial import FinishedTrial

if TYPE_CHECKING:
    from tune.results.result import SearchResult

Callback = SearchCallback | Callable[[FinishedTrial], Any]
"""A callback object, or a plain function that is called with every trial that ends."""


class CallbackList(SearchCallback):
    """Calls every callback in order.

    If a callback raises an exception, its first exception becomes a warning, and the search continues: a plot or a
    logger must not end hours of trials. The callback is still called afterwards. KeyboardInterrupt and SystemExit do
    end the search.

    Raises:
        ConfigError: a callback is neither a SearchCallback nor a function.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = [_as_callback(position, each) for position, each in enumerate(callbacks)]
        self._warned: set[int] = set()

    def add(self, callback: SearchCallback) -> None:
        """Append a callback."""
        self._callbacks.append(callback)

    def on_prepare(self, event: SearchPreparationEvent) -> None:
        """Call ``on_prepare`` of every callback."""
        self._call_each(lambda callback: callback.on_prepare(event))

    def on_start(self, progress: Progress) -> None:
        """Call ``on_start`` of every callback."""
        self._call_each(lambda callback: callback.on_start(progress))

    def on_progress(self, progress: Progress) -> None:
        """Call ``on_progress`` of every callback."""
        self._call_each(lambda callback: callback.on_progress(progress))

    def on_trial_end(self, trial: FinishedTrial) -> None:
        """Call ``on_trial_end`` of every callback."""
        self._call_each(lambda callback: callback.on_trial_end(trial))

    def on_confirm(self, done: int, total: int) -> None:
        """Call ``on_confirm`` of every callback."""
        self._call_each(lambda callback: callback.on_confirm(done, total))

    def on_end(self, result: SearchResult) -> None:
        """Call ``on_end`` of every callback."""
        self._call_each(lambda callback: callback.on_end(result))

    def _call_each(self, call: Callable[[SearchCallback], None]) -> None:
        for callback in self._callbacks:
            try:
                call(callback)
            except Exception as error:
                # Any exception is possible here: the callback is the user's own code.
                if id(callback) not in self._warned:
                    self._warned.add(id(callback))
                    warnings.warn(_sentence(callback, error), stacklevel=3)


class _FunctionCallback(SearchCallback):
    """A plain function that is called with every trial that ends."""

    def __init__(self, function: Callable[[FinishedTrial], Any]) -> None:
        self._function = function

    def __str__(self) -> str:
        return getattr(self._function, "__qualname__", type(self._function).__name__)

    def on_trial_end(self, trial: FinishedTrial) -> None:
        """Call the function."""
        self._function(trial)


def _as_callback(position: int, callback: Callback) -> SearchCallback:
    if isinstance(callback, SearchCallback):
        return callback
    if callable(callback) and not isinstance(callback, type):
        return _FunctionCallback(callback)
    raise ConfigError(
        f"callbacks[{position}] is {callback!r}, which is neither a tune.SearchCallback nor a function of one ended "
        "trial: give an instance or a function"
    )


def _sentence(callback: SearchCallback, error: Exception) -> str:
    name = str(callback) if isinstance(callback, _FunctionCallback) else type(callback).__name__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"The callback {name} raised {type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"
        "; the search goes on"
    )
