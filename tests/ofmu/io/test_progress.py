"""The progress of loops, with a clock that the tests turn."""

from __future__ import annotations

import pytest

from ofmu.io import progress
from ofmu.io.progress import Progress, clock, reporting_to, track, working_on


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_without_a_listener_a_tracked_loop_is_the_plain_loop():
    assert list(track([3, 1, 2], "counting")) == [3, 1, 2]


def test_the_time_left_follows_the_work_and_leaves_out_the_slow_first_item(now):
    seen: list[Progress] = []
    with reporting_to(seen.append), working_on("target"):
        for item in track([50, 10, 30, 10], "training", work=[1, 1, 3, 1]):
            now[0] += item
    assert [report.name for report in seen] == ["target, training"] * 4
    assert [report.share for report in seen] == pytest.approx([1 / 6, 2 / 6, 5 / 6, 1])
    # The first item took 50 s. The others take 10 s per unit of work, and 4 units are left after the second.
    assert [report.remaining for report in seen] == [None, pytest.approx(40), pytest.approx(10), 0]
    assert [report.elapsed for report in seen] == [50, 60, 90, 100]


def test_a_listener_and_a_subject_end_with_their_block(now):
    seen: list[Progress] = []
    with reporting_to(seen.append):
        with working_on("target"):
            list(track([1], "scoring"))
        list(track([1], "scoring"))
        with reporting_to(None):
            list(track([1], "scoring"))
    list(track([1], "scoring"))
    assert [report.name for report in seen] == ["target, scoring", "scoring"]


def test_an_empty_loop_reports_nothing():
    seen: list[Progress] = []
    with reporting_to(seen.append):
        assert list(track([], "scoring")) == []
    assert seen == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599.4, "59:59"), (3601, "1:00:01")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
