"""What ``ofmu search`` shows: a live table on a terminal, short plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ofmu.tasks.events import PartReady, PreparationEvent, PreparationStarted
from tune.callbacks.base import Progress, SearchListener, WarmStartLoaded
from tune.results.report import format_front
from tune.results.result import SearchResult

_SHOWN = 12


class SearchView(SearchListener):
    """Plain lines: the start, every few trials, the end. Base of the live view."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run_dir: str | None = None
        self._told = 0

    def __enter__(self) -> SearchView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to put back."""

    def on_prepare(self, event: PreparationEvent | WarmStartLoaded) -> None:
        """Say what is prepared before the first trial."""
        if isinstance(event, PreparationStarted):
            self.say("Preparing the target model and its reference")
        elif isinstance(event, PartReady):
            how = "made" if event.created else "found in the cache"
            self.say(f"  {event.part}: {how} in {event.seconds:.1f} s")
        elif isinstance(event, WarmStartLoaded):
            self.say(f"Warm start: {event.prior} prior trials, {event.initial} settings to run first")

    def on_start(self, progress: Progress) -> None:
        """Say where the search writes."""
        self.run_dir, self._told = progress.result.place, progress.done
        names = ", ".join(f"{name} ({way})" for name, way in progress.result.config.objectives.items())
        again = f", {progress.done} of them done" if progress.done else ""
        self.say(f"Searching {names}: {progress.total} trials{again}, in {self.run_dir}")
        if workers := progress.result.config.cluster.num_workers:
            self.say(
                f"Each trial is a group of {workers} workers: its outer steps are not shown live, but written to "
                f"{self.run_dir}/trials/*/history.jsonl"
            )

    def on_progress(self, progress: Progress) -> None:
        """Say how far the search is, about ten times in all."""
        if progress.done - self._told >= max(1, progress.total // 10):
            self._told = progress.done
            self.say(describe(progress))

    def say(self, line: str) -> None:
        """Print one line."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show_result(self, result: SearchResult) -> None:
        """Show the front, where it lies, and how to take a model from it, as far as there is one."""
        states = result.trials["state"]
        failed, pruned = int((states == "failed").sum()), int((states == "pruned").sum())
        counts = f"{int((states == 'complete').sum())} trials complete, {failed} failed{_and_pruned(result, pruned)}"
        if not len(result.front):
            self.say(f"{counts}; everything is in {result.place}")
            return
        self.say(f"{counts}; the front:")
        self._show_front(format_front(result))
        self.say(f"Hypervolume {result.hypervolume:.4f}; everything is in {result.place}")
        self.say(f"To take the knee's model: ofmu export {result.place} --pick knee --output DIR")

    def _show_front(self, rows: list[list[str]]) -> None:
        """Print aligned lines that no width folds, for files and pipes."""
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        for row in rows:
            self.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class LiveView(SearchView):
    """The table that a terminal shows while trials run."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._since = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last table standing."""
        if self._live is not None:
            self._live.stop()

    def on_start(self, progress: Progress) -> None:
        """Put the table up."""
        super().on_start(progress)
        self._progress = progress
        self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=2, redirect_stderr=True)
        self._live.start()

    def on_progress(self, progress: Progress) -> None:
        """Keep the newest state; the table redraws itself."""
        self._progress, self._since = progress, time.monotonic()

    def _show_front(self, rows: list[list[str]]) -> None:
        header, *points = rows
        table = Table(box=None, header_style="bold")
        for name in header:
            table.add_column(name, overflow="fold")
        for row in points:
            table.add_row(*row)
        self.console.print(table)

    def _render(self) -> Group:
        progress = self._progress
        if progress is None:
            return Group()
        waited = time.monotonic() - self._since
        return Group(
            ProgressBar(total=progress.total, completed=progress.done, width=60),
            Text(describe(progress, waited)),
            _front(progress.result),
        )


def make_view() -> SearchView:
    """Return the live view on a terminal, the plain one otherwise."""
    console = Console()
    return LiveView(console) if console.is_terminal else SearchView(console)


def describe(progress: Progress, waited: float = 0.0) -> str:
    """Return one line on how far a search is, ``waited`` seconds after that was known."""
    left = "" if progress.left is None else f", about {_clock(max(progress.left - waited, 0))} left"
    return (
        f"{progress.done}/{progress.total} trials, {len(progress.running)} running, {progress.failed} failed"
        f"{_and_pruned(progress.result, progress.pruned)}, "
        f"front {len(progress.result.front)}, hypervolume {progress.result.hypervolume:.4f}, "
        f"{_clock(progress.elapsed + waited)} so far{left}"
    )


def _and_pruned(result: SearchResult, pruned: int) -> str:
    """Return how many trials were stopped early, for a search that may stop any."""
    return f", {pruned} pruned" if pruned or result.config.search.early_stopping.enabled else ""


def _front(result: SearchResult) -> Table:
    names = list(result.config.objectives)
    table = Table(box=None, header_style="bold")
    for name in ("trial", *names, "role"):
        table.add_column(name, justify="left" if name == "role" else "right")
    for _, row in result.front.head(_SHOWN).iterrows():
        table.add_row(str(row["trial"]), *(f"{row[name]:.4g}" for name in names), str(row["role"]))
    if len(result.front) > _SHOWN:
        table.add_row("…", *[""] * len(names), f"and {len(result.front) - _SHOWN} more")
    return table


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
