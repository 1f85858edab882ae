"""Whoever follows a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ofmu.tasks.events import PreparationEvent
from tune.callbacks.base import SearchListener

if TYPE_CHECKING:
    from tune.compare.result import ComparisonResult


class CompareListener:
    """Base of whoever follows a comparison. Every hook is optional and runs in the comparison's own process."""

    def on_prepare(self, event: PreparationEvent) -> None:
        """Called with the events of the preparation."""

    def on_start(self, run_dir: Path, methods: tuple[str, ...]) -> None:
        """The first search is about to start."""

    @contextmanager
    def search(self, method: str, index: int, count: int) -> Iterator[Sequence[SearchListener]]:
        """Surround one method's search, the ``index``-th of ``count``; what is yielded listens to it."""
        yield ()

    def on_runs(self, method: str, done: int, total: int) -> None:
        """So many of the chosen points' runs are done."""

    def on_end(self, result: ComparisonResult) -> None:
        """The comparison is over and its files are written."""
