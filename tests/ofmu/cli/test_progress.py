"""The line of progress on terminals and in files."""

from __future__ import annotations

import io

import pytest

from ofmu.cli import progress
from ofmu.cli.progress import ProgressPrinter, describe
from ofmu.io.progress import Announcement, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def after(elapsed: float, total: float = 100.0, name: str = "target, training") -> Progress:
    return Progress(name=name, share=elapsed / total, elapsed=elapsed, remaining=total - elapsed)


def test_a_file_gets_a_line_every_thirty_seconds_and_none_at_the_end(now):
    stream = io.StringIO()
    printer = ProgressPrinter(stream)
    for elapsed in range(1, 101):
        now[0] += 1
        printer(after(elapsed))
    lines = stream.getvalue().splitlines()
    assert lines == [
        "  target, training: 30 %, about 1:10 left",
        "  target, training: 60 %, about 0:40 left",
        "  target, training: 90 %, about 0:10 left",
    ]


def test_short_loops_print_nothing_in_a_file(now):
    stream = io.StringIO()
    printer = ProgressPrinter(stream)
    for number in range(20):
        for elapsed in range(1, 11):
            now[0] += 1
            printer(after(elapsed, 10, name=f"loop {number}"))
    assert stream.getvalue() == ""


def test_a_terminal_has_one_line_that_goes_at_the_end(now):
    stream = Terminal()
    printer = ProgressPrinter(stream)
    for elapsed in range(1, 11):
        now[0] += 1
        printer(after(elapsed, 10))
    parts = stream.getvalue().split("\r\x1b[K")
    assert "\n" not in stream.getvalue()
    assert parts[1] == "  target, training: 10 %, about 0:09 left"
    assert parts[-1] == ""


def test_a_loop_without_an_estimate_shows_its_share():
    assert describe(Progress(name="scoring", share=0.5, elapsed=1, remaining=None)) == "scoring: 50 %"


def test_an_announcement_is_printed_at_once_on_a_line_of_its_own(now):
    for stream, line in ((io.StringIO(), "Setting rates\n"), (Terminal(), "\r\x1b[KSetting rates\n")):
        ProgressPrinter(stream)(Announcement("Setting rates"))
        assert stream.getvalue() == line
