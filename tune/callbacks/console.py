"""The console output of ``ofmu search``: a live table on a terminal, short plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ofmu.io.console_table import Column, print_line, print_table, rich_table
from ofmu.io.progress import clock
from ofmu.io.text import counted, shell_word
from ofmu.reports.numbers import metric_text
from ofmu.reports.verdict import great_loss
from ofmu.run_files import HISTORY, REPORT
from ofmu.tasks.events import PartReady, PreparationStarted, TrainingContinued
from tune.callbacks.base import EngineDecided, Progress, SearchCallback, SearchPreparationEvent, WarmStartLoaded
from tune.config import SearchOptions
from tune.results.confirmed import confirmed_sentence
from tune.results.report import (
    constraints_text,
    feasible_text,
    format_front,
    marked_role,
    sentence_beyond_knee,
    sentence_nothing_forgotten,
)
from tune.results.result import SearchResult
from tune.results.tables import target_metrics, trial_name

_MAX_ROWS = 12
"""Rows of the live table."""


class ConsoleCallback(SearchCallback):
    """Prints plain lines: the start, about ten times the progress, and the result."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run_dir: str | None = None
        """The run directory as users type it; None before the search starts."""
        self.resume_words: str | None = None
        """What follows ``--resume`` in the command that continues the search; None before the search starts."""
        self._preparations = 0
        """How often a search has begun its preparation. A search that is continued prepares again."""
        self._reported = 0
        """Number of finished trials in the last progress line."""

    def __enter__(self) -> ConsoleCallback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing; the live console stops its table here."""

    def on_prepare(self, event: SearchPreparationEvent) -> None:
        """Print what the preparation does."""
        if isinstance(event, PreparationStarted):
            self._preparations += 1
            if self._preparations == 1:
                self.print_line("Preparing the target model and its reference")
        elif isinstance(event, PartReady):
            if self._preparations > 1 and not event.created:
                return  # the lines of the first preparation stand above
            how = "made" if event.created else "found in the cache"
            self.print_line(f"  {event.part}: {how} in {event.seconds:.1f} s")
        elif isinstance(event, TrainingContinued):
            self.print_line(f"  {event.part}: continues from the end of epoch {event.epoch} of {event.epochs}")
        elif isinstance(event, EngineDecided):
            self.print_line(event.sentence)
        elif isinstance(event, WarmStartLoaded):
            self.print_line(
                f"Warm start: {counted(event.prior, 'prior trial')}, {counted(event.initial, 'setting')} to run first"
            )

    def on_start(self, progress: Progress) -> None:
        """Print the objectives, the number of trials and the run directory.

        A search that is over, and is continued for runs on further seeds, is not announced again.
        """
        announced, self.run_dir, self._reported = self.run_dir, progress.result.display_path, progress.done
        self.resume_words = progress.result.resume_words
        if announced == self.run_dir and progress.done >= progress.total:
            return
        names = ", ".join(f"{name} ({way})" for name, way in progress.result.config.objectives.items())
        if progress.result.config.search.constraints:
            names += f" under {constraints_text(progress.result)}"
        finished = f", {progress.done} of them done" if progress.done else ""
        search = progress.result.config.search
        trials = f"at most {counted(search.num_trials, 'trial')}" if _is_limited(search) else _trials(progress)
        self.print_line(f"Searching {names}: {trials}{finished}, in {self.run_dir}")
        if workers := progress.result.config.cluster.num_workers:
            self.print_line(
                f"Each trial is a group of {counted(workers, 'worker')}: its outer steps are not shown live, but "
                f"written to {self.run_dir}/trials/*/{HISTORY}"
            )

    def on_progress(self, progress: Progress) -> None:
        """Print the progress, about ten times per search."""
        if progress.done - self._reported >= max(1, progress.total // 10):
            self._reported = progress.done
            self.print_line(describe(progress))

    def on_confirm(self, done: int, total: int) -> None:
        """Print how many runs on further seeds are done, about five times."""
        if total and (done == total or done % max(1, total // 5) == 0):
            self.print_line(f"The front's best points on further seeds: {done}/{total} runs")

    def print_line(self, line: str) -> None:
        """Print one plain line."""
        print_line(line, self.console)

    def show_result(self, result: SearchResult) -> None:
        """Print the counts, the run directory, the front, and the command that exports a model of the front."""
        states = result.trials["state"]
        failed, pruned = int((states == "failed").sum()), int((states == "pruned").sum())
        complete = counted(int((states == "complete").sum()), "trial")
        counts = f"{complete} complete, {failed} failed{_and_pruned(result, pruned)}"
        if not len(result.front):
            self.print_line(f"{counts}; everything is in {result.display_path}")
            return
        self.print_line(f"{counts}; {'the front' if result.has_feasible else 'nearest to the constraints'}:")
        header, *rows = format_front(result)
        print_table([Column(name) for name in header], rows, console=self.console, boxed=False)
        if confirmed := result.confirmed_hypervolumes:
            self.print_line(confirmed_sentence(result, *confirmed))
        self.print_line(f"Hypervolume {result.hypervolume:.4f}; everything is in {result.display_path}")
        if (result.run_dir / REPORT).is_file():
            self.print_line(f"The report, for a browser: {result.display_path}/{REPORT}")
        if sentence := result.nearest_sentence:
            self.print_line(f"{sentence}; --pick {result.chosen.number} takes its model")
        elif result.forgets_more_than_target:
            self.print_line(
                f"To take the knee's model: ofmu export {shell_word(result.display_path)} --pick knee --output DIR"
            )
            if lost := great_loss(result.chosen.values, target_metrics(result.trials)):
                self.print_line(f"Warning: the knee's model {lost}; front.csv has the other points")
            beyond = result.beyond_knee
            if beyond is not None:
                self.print_line(f"{sentence_beyond_knee(result)}: --pick {beyond.number} takes its model")
        else:
            fix = (
                "loosen search.constraints"
                if result.limits
                else "raise the learning rates or the steps in search.space"
            )
            self.print_line(f"{sentence_nothing_forgotten(result)}: {fix}")


class LiveConsoleCallback(ConsoleCallback):
    """Shows a live table of the front on a terminal while trials run."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._received = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop updating the table. The last state remains on the terminal."""
        if self._live is not None:
            self._live.stop()

    def on_start(self, progress: Progress) -> None:
        """Print the start, and show the table."""
        super().on_start(progress)
        self._progress = progress
        self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=2, redirect_stderr=True)
        self._live.start()

    def on_progress(self, progress: Progress) -> None:
        """Store the state for the next refresh of the table."""
        self._progress, self._received = progress, time.monotonic()

    def _render(self) -> Group:
        progress = self._progress
        if progress is None:
            return Group()
        age = time.monotonic() - self._received
        return Group(
            ProgressBar(total=progress.total, completed=progress.done, width=60),
            Text(describe(progress, age)),
            _front(progress.result),
        )


def console_callback() -> ConsoleCallback:
    """Return the live callback if standard output is a terminal, else the plain one."""
    console = Console()
    return LiveConsoleCallback(console) if console.is_terminal else ConsoleCallback(console)


def describe(progress: Progress, age: float = 0.0) -> str:
    """Return one line on the state of a search. ``age`` is the number of seconds since ``progress`` was made."""
    total = f"{progress.done}/{_trials(progress)}"
    if _is_limited(progress.result.config.search):
        total = f"{progress.done} of about {_trials(progress)}"
    left = "" if progress.remaining is None else f", about {clock(max(progress.remaining - age, 0))} left"
    return (
        f"{total}, {len(progress.running)} running, {progress.failed} failed"
        f"{_and_pruned(progress.result, progress.pruned)}, "
        f"front {len(progress.result.front)}, hypervolume {progress.result.hypervolume:.4f}, "
        f"{clock(progress.elapsed + age)} so far{left}"
    )


def _trials(progress: Progress) -> str:
    return counted(progress.total, "trial")


def _is_limited(search: SearchOptions) -> bool:
    """Return whether a search may end before its last trial, so that the number of its trials is only estimated."""
    return search.max_hours is not None or search.max_gradient_evaluations is not None


def _and_pruned(result: SearchResult, pruned: int) -> str:
    """Return the number of pruned trials as text; empty if the search stops no trials early."""
    search = result.config.search
    may_stop = search.early_stopping.enabled or search.checkpoint_selection.enabled
    return f", {pruned} pruned" if pruned or may_stop else ""


def _front(result: SearchResult) -> Table:
    names = list(result.config.objectives)
    feasible = ["feasible"] if result.config.search.constraints else []
    columns = [Column(name, justify="right", overflow="ellipsis") for name in ("trial", *names, *feasible)]
    rows = [
        [
            trial_name(dict(row)),
            *(metric_text(name, row[name]) for name in names),
            *(feasible_text(dict(row), result) for _ in feasible),
            marked_role(row, result),
        ]
        for _, row in result.front.head(_MAX_ROWS).iterrows()
    ]
    if len(result.front) > _MAX_ROWS:
        rows.append(["…", *[""] * len([*names, *feasible]), f"and {len(result.front) - _MAX_ROWS} more"])
    return rich_table([*columns, Column("role", overflow="ellipsis")], rows, boxed=False)
