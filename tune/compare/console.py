"""What ``ofmu compare`` shows: each search's own view, a line per share of the runs, and the table at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ofmu.tasks.events import PreparationEvent
from tune.callbacks.base import Progress, SearchListener
from tune.callbacks.console import SearchView, make_view
from tune.compare.callback import CompareListener
from tune.compare.result import ComparisonResult
from tune.compare.tables import compact_table, verdict
from tune.study.finished_trial import FinishedTrial


class CompareView(CompareListener):
    """Prints to a console; on a terminal each search shows its live table."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.run_dir: Path | None = None
        self._plain = SearchView(self.console)
        self._told: tuple[str, int] = ("", 0)

    def on_prepare(self, event: PreparationEvent) -> None:
        """Say what is prepared before the first search."""
        self._plain.on_prepare(event)

    def on_start(self, run_dir: Path, methods: tuple[str, ...]) -> None:
        """Say what is compared, and where it is written."""
        self.run_dir = run_dir
        self._plain.say(f"Comparing {', '.join(methods)}, in {run_dir}")

    @contextmanager
    def search(self, method: str, index: int, count: int) -> Iterator[Sequence[SearchListener]]:
        """Show one method's search."""
        self._plain.say(f"{method} ({index} of {count})")
        with make_view() as view:
            yield (_WithoutPreparation(view),)

    def on_runs(self, method: str, done: int, total: int) -> None:
        """Say how far a method's runs on other seeds are, about four times in all."""
        known, before = self._told
        if method != known or done == total or done - before >= max(1, total // 4):
            self._told = (method, done)
            self._plain.say(f"{method}: {done} of {total} runs on other seeds done")

    def on_end(self, result: ComparisonResult) -> None:
        """Show the table, what it says, and where everything lies."""
        rows = compact_table(result.summary)
        # methods as columns: no terminal is as wide as all quantities side by side
        turned = [list(row) for row in zip(*rows, strict=True)]
        if self.console.is_terminal:
            self._print_table(turned)
        else:
            self._print_aligned(turned)
        self._plain.say(verdict(result.summary))
        self._plain.say(f"* significantly best; how to read it stands in {result.run_dir / 'compare.md'}")
        self._plain.say(f"Every run behind these numbers is named in {result.run_dir / 'compare.json'}")

    def _print_table(self, rows: list[list[str]]) -> None:
        header, *quantities = rows
        table = Table(box=None, header_style="bold")
        for index, name in enumerate(header):
            table.add_column(escape(name), justify="right" if index else "left", overflow="fold")
        for quantity in quantities:
            cells = [escape(cell) for cell in quantity]
            table.add_row(*(f"[bold]{cell}[/bold]" if cell.endswith("*") else cell for cell in cells))
        self.console.print(table)

    def _print_aligned(self, rows: list[list[str]]) -> None:
        """Print lines that no width folds, for files and pipes."""
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        for row in rows:
            self._plain.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class _WithoutPreparation(SearchListener):
    """Passes on what a search tells, but for the preparation, which all searches share."""

    def __init__(self, view: SearchListener) -> None:
        self._view = view

    def on_start(self, progress: Progress) -> None:
        self._view.on_start(progress)

    def on_progress(self, progress: Progress) -> None:
        self._view.on_progress(progress)

    def on_trial_end(self, trial: FinishedTrial) -> None:
        self._view.on_trial_end(trial)
