"""The console output of ``ofmu compare``: every search's own output, progress of the runs, and the final table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from ofmu.io.console_table import Cell, Column, print_table
from ofmu.io.text import counted
from ofmu.run_files import REPORT
from ofmu.tasks.events import PreparationEvent
from tune.callbacks.base import EngineDecided, Progress, SearchCallback, SearchPreparationEvent
from tune.callbacks.console import ConsoleCallback, console_callback
from tune.compare.callback import CompareCallback
from tune.compare.directory import SUMMARY, TEXT
from tune.compare.result import ComparisonResult
from tune.compare.tables import compact_table, verdict
from tune.study.finished_trial import FinishedTrial


class CompareConsoleCallback(CompareCallback):
    """Prints to a console. On a terminal every search shows its live table."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.run_dir: Path | None = None
        """The run directory; None before the comparison starts."""
        self._plain = ConsoleCallback(self.console)
        self._reported: tuple[str, int] = ("", 0)
        """The method and the number of its finished runs in the last progress line."""

    def on_prepare(self, event: PreparationEvent) -> None:
        """Print what the preparation does."""
        self._plain.on_prepare(event)

    def on_start(self, run_dir: Path, methods: tuple[str, ...]) -> None:
        """Print the methods and the run directory."""
        self.run_dir = run_dir
        self._plain.print_line(f"Comparing {', '.join(methods)}, in {run_dir}")

    @contextmanager
    def search(self, method: str, index: int, count: int) -> Iterator[Sequence[SearchCallback]]:
        """Print one method's search."""
        self._plain.print_line(f"{method} ({index} of {count})")
        with console_callback() as callback:
            yield (_WithoutPreparation(callback),)

    def on_runs(self, method: str, done: int, total: int) -> None:
        """Print the progress of a method's runs on other seeds, about four times per method."""
        last_method, before = self._reported
        if method != last_method or done == total or done - before >= max(1, total // 4):
            self._reported = (method, done)
            self._plain.print_line(f"{method}: {done} of {counted(total, 'run')} on other seeds done")

    def on_no_points(self, method: str, reason: str) -> None:
        """Print why nothing runs on other seeds."""
        self._plain.print_line(f"{method}: nothing runs on other seeds, since {reason}")

    def on_end(self, result: ComparisonResult) -> None:
        """Print the table, the verdict, and the names of the files."""
        # One column per method: no terminal is wide enough for one column per quantity.
        header, *quantities = zip(*compact_table(result.summary), strict=True)
        columns = [Column(name, justify="right" if index else "left") for index, name in enumerate(header)]
        print_table(
            columns,
            [[_cell(text) for text in quantity] for quantity in quantities],
            console=self.console,
            boxed=False,
        )
        self._plain.print_line(verdict(result.summary))
        self._plain.print_line(f"* significantly best; how to read the table is in {result.run_dir / TEXT}")
        if (result.run_dir / REPORT).is_file():
            self._plain.print_line(f"The report, for a browser: {result.run_dir / REPORT}")
        self._plain.print_line(f"Every run behind these numbers is named in {result.run_dir / SUMMARY}")


def _cell(text: str) -> Cell:
    return ((text, "bold"),) if text.endswith("*") else text


class _WithoutPreparation(SearchCallback):
    """Passes on the events of a search but the preparation's, which are the same in all searches."""

    def __init__(self, callback: SearchCallback) -> None:
        self._callback = callback

    def on_prepare(self, event: SearchPreparationEvent) -> None:
        # The engine of each search depends on what its method holds.
        if isinstance(event, EngineDecided):
            self._callback.on_prepare(event)

    def on_start(self, progress: Progress) -> None:
        self._callback.on_start(progress)

    def on_progress(self, progress: Progress) -> None:
        self._callback.on_progress(progress)

    def on_trial_end(self, trial: FinishedTrial) -> None:
        self._callback.on_trial_end(trial)
