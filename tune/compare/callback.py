"""The callback interface of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ofmu.tasks.events import PreparationEvent
from tune.callbacks.base import SearchCallback

if TYPE_CHECKING:
    from tune.compare.result import ComparisonResult


class CompareCallback:
    """Base class of a comparison's callback. Every hook is optional, and runs in the comparison's own process."""

    def on_prepare(self, event: PreparationEvent) -> None:
        """Called with each event of the preparation."""

    def on_start(self, run_dir: Path, methods: tuple[str, ...]) -> None:
        """Called before the first search starts."""

    @contextmanager
    def search(self, method: str, index: int, count: int) -> Iterator[Sequence[SearchCallback]]:
        """Surround one method's search, number ``index`` of ``count``. Yield the callbacks of that search."""
        yield ()

    def on_runs(self, method: str, done: int, total: int) -> None:
        """Called when ``done`` of a method's ``total`` runs on other seeds have ended."""

    def on_no_points(self, method: str, reason: str) -> None:
        """Called in place of :meth:`on_runs` if no point of a method's front runs on other seeds, with the reason."""

    def on_end(self, result: ComparisonResult) -> None:
        """Called after the comparison ended and its files were written."""
