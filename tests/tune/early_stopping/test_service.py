"""The scheduler with its log on disk. Searches that use its actor are in tests/integration."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofmu.errors import DataError, StorageError
from tune.early_stopping.config import EarlyStoppingConfig
from tune.early_stopping.rungs import RungScheduler
from tune.early_stopping.service import PersistentRungScheduler

OBJECTIVES = {"ks_statistic": "min", "model_utility": "max"}
CONFIG = EarlyStoppingConfig(enabled=True, rung_size=2, grace_rounds=1, first_rung=0.25)
"""Rungs at a quarter and at half of a trial's rounds."""


def open_scheduler(path: Path) -> PersistentRungScheduler:
    return PersistentRungScheduler(path, OBJECTIVES, CONFIG)


def point(quality: float) -> dict[str, float | None]:
    """Return values that are better in both objectives the higher ``quality`` is."""
    return {"ks_statistic": 1 - quality, "model_utility": quality}


def test_decisions_are_the_schedulers_before_and_after_a_restart(tmp_path):
    qualities = [0.5, 0.4, 0.9, 0.1, 0.6, 0.2, 0.7, 0.3, 0.8]
    scheduler = RungScheduler(OBJECTIVES, CONFIG)
    expected = [scheduler.report(trial, 2, point(quality), 8) == "stop" for trial, quality in enumerate(qualities)]
    assert True in expected
    assert False in expected
    first = open_scheduler(tmp_path / "rungs.jsonl")
    decided = [first.should_stop(trial, 2, 8, point(quality)) for trial, quality in enumerate(qualities[:5])]
    second = open_scheduler(tmp_path / "rungs.jsonl")
    decided += [second.should_stop(trial, 2, 8, point(quality)) for trial, quality in enumerate(qualities[5:], start=5)]
    assert decided == expected


values = st.one_of(st.integers(0, 5), st.none())
reports = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 8), values, values), max_size=30)


@pytest.mark.slow
@settings(max_examples=40)
@given(reports, st.integers(0, 30))
def test_a_restart_at_any_report_changes_no_decision(rows, cut):
    scheduler = RungScheduler(OBJECTIVES, CONFIG)
    expected, first_answers = [], {}
    for trial, round, distance, utility in rows:
        named = {"ks_statistic": distance, "model_utility": utility}
        if (trial, round) not in first_answers:
            first_answers[trial, round] = scheduler.report(trial, round, named, 9) == "stop"
        expected.append(first_answers[trial, round])
    with tempfile.TemporaryDirectory() as folder:
        path, decided = Path(folder) / "rungs.jsonl", []
        for part in (rows[:cut], rows[cut:]):
            found = open_scheduler(path)
            for trial, round, distance, utility in part:
                named = {"ks_statistic": distance, "model_utility": utility}
                decided.append(found.should_stop(trial, round, 9, named))
    assert decided == expected


def test_a_repeated_round_gets_its_answer_and_counts_once(tmp_path):
    path = tmp_path / "rungs.jsonl"
    found = open_scheduler(path)
    decided = [found.should_stop(trial, 2, 8, point(quality)) for trial, quality in enumerate([0.9, 0.8, 0.1])]
    before = path.read_text()
    assert decided[2]
    for again in (found, open_scheduler(path)):
        assert [again.should_stop(trial, 2, 8, point(0.99)) for trial in range(3)] == decided
    assert path.read_text() == before


def test_an_incomplete_last_line_is_dropped(tmp_path):
    path = tmp_path / "rungs.jsonl"
    found = open_scheduler(path)
    found.should_stop(0, 2, 8, point(0.9))
    whole = path.read_text()
    path.write_text(whole + '{"trial": 1, "rou')
    open_scheduler(path).should_stop(2, 2, 8, point(0.8))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["trial"] for line in lines] == [0, 2]


def line(**changed: object) -> str:
    return json.dumps({"trial": 1, "round": 2, "total": 8, "values": point(0.5)} | changed)


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[" * 100_000,
        "[1]",
        "null",
        '{"a": 1}',
        line(a=1),
        line(round="2"),
        line(round=0),
        line(round=9),
        line(round=float("nan")),
        line(total=10**400),
        line(trial=[1]),
        line(values=None),
        line(values=[1]),
        line(values={"ks_statistic": "x"}),
        line(values={"ks_statistic": 10**400}),
        b"\xff\xfe",
    ],
    ids=lambda text: str(text)[:60],
)
def test_a_file_with_other_content_is_refused_and_stays_as_it_is(tmp_path, text):
    path = tmp_path / "rungs.jsonl"
    data = line().encode() + b"\n" + (text if isinstance(text, bytes) else text.encode()) + b"\nincomplete"
    path.write_bytes(data)
    with pytest.raises(DataError) as refused:
        open_scheduler(path)
    assert str(refused.value) == f"{path} is malformed in line 2: delete the file to start early stopping anew"
    with pytest.raises(DataError, match=r"^s3://bucket/rungs\.jsonl is malformed in line 2"):
        PersistentRungScheduler(path, OBJECTIVES, CONFIG, "s3://bucket/rungs.jsonl")
    assert path.read_bytes() == data


def test_a_failed_write_is_reported_and_nothing_is_written_after_it(tmp_path):
    path = tmp_path / "gone" / "rungs.jsonl"
    found = open_scheduler(path)
    with pytest.raises(StorageError, match=r"rungs\.jsonl"):
        found.should_stop(0, 2, 8, point(0.9))
    path.parent.mkdir()
    with pytest.raises(StorageError):
        found.should_stop(1, 2, 8, point(0.9))
    assert not path.exists()
    open_scheduler(path).should_stop(0, 2, 8, point(0.9))
    assert path.is_file()
