"""The judge of running trials, with evaluations made up; searches that it is part of are in tests/integration."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ofmu.early_stopping import RoundState
from ofmu.errors import DataError, PrunedError, PruningRecord, StorageError
from tune.early_stopping.config import EarlyStoppingConfig
from tune.early_stopping.rungs import RungScheduler
from tune.early_stopping.service import EarlyStoppingCallback, Judging, PersistentRungScheduler, intermediate_values

WAYS = {"ks_statistic": "min", "model_utility": "max"}
SETTINGS = EarlyStoppingConfig(enabled=True, rung_size=2, grace_rounds=1, first_rung=0.25)
"""Rungs at a quarter and at half of a trial's rounds."""


def book(path: Path) -> PersistentRungScheduler:
    return PersistentRungScheduler(path, WAYS, SETTINGS)


def point(quality: float) -> dict[str, float | None]:
    """Values that are better in both objectives the higher ``quality`` is."""
    return {"ks_statistic": 1 - quality, "model_utility": quality}


def standing(round: int, total: int = 8, rank: int = 0) -> RoundState:
    engine: Any = SimpleNamespace(rank=rank, world_size=1)
    task: Any = None
    record = {"outer_step": round, "gradient_evaluations": 10 * round, "seconds": 0.5}
    return RoundState(round=round, total=total, record=record, engine=engine, task=task, reference_scores=None)


@dataclass
class Asked:
    answer: bool = False
    heard: list[tuple[Any, ...]] = field(default_factory=list)

    def stops(self, *question: Any) -> bool:
        self.heard.append(question)
        return self.answer


class FakeTrial(EarlyStoppingCallback):
    """A trial whose sketch is a table by round."""

    scored: list[int]

    def _metrics(self, standing: RoundState) -> dict[str, float | None]:
        self.scored = [*getattr(self, "scored", []), standing.round]
        return point(standing.round / 10)


def judged(asked: Asked) -> FakeTrial:
    return FakeTrial(Judging(SETTINGS, tuple(WAYS), asked), 7)


def test_a_trial_is_scored_and_asked_about_at_its_rungs_alone():
    asked = Asked()
    trial = judged(asked)
    for round in range(1, 8):
        trial(standing(round))
    assert trial.scored == [2, 4]
    assert asked.heard == [(7, 2, 8, point(0.2)), (7, 4, 8, point(0.4))]


def test_a_stop_ends_the_run_with_its_account():
    with pytest.raises(PrunedError) as caught:
        judged(Asked(answer=True))(standing(4))
    assert caught.value.record == PruningRecord(round=4, total=8, rung=0.5, objectives=point(0.4))
    assert "round 4 of 8" in str(caught.value)


def test_the_sketchs_metrics_become_objectives():
    metrics = {"forget_probability": 0.25, "ks_statistic": math.nan, "model_utility": None, "forget_rouge": None}
    names = ("forget_rouge", "ks_statistic", "model_utility", "gradient_evaluations", "unheard_of")
    values = intermediate_values(names, metrics, {"gradient_evaluations": 40})
    expected = {"forget_rouge": 0.25, "ks_statistic": None, "model_utility": None}
    assert values == {**expected, "gradient_evaluations": 40.0, "unheard_of": None}


def test_the_book_decides_as_the_scheduler_and_again_after_a_restart(tmp_path):
    qualities = [0.5, 0.4, 0.9, 0.1, 0.6, 0.2, 0.7, 0.3, 0.8]
    scheduler = RungScheduler(WAYS, SETTINGS)
    expected = [scheduler.report(trial, 2, point(quality), 8) == "stop" for trial, quality in enumerate(qualities)]
    assert True in expected
    assert False in expected
    first = book(tmp_path / "rungs.jsonl")
    got = [first.stops(trial, 2, 8, point(quality)) for trial, quality in enumerate(qualities[:5])]
    second = book(tmp_path / "rungs.jsonl")
    got += [second.stops(trial, 2, 8, point(quality)) for trial, quality in enumerate(qualities[5:], start=5)]
    assert got == expected


def test_a_round_told_again_gets_its_answer_and_counts_once(tmp_path):
    path = tmp_path / "rungs.jsonl"
    found = book(path)
    verdicts = [found.stops(trial, 2, 8, point(quality)) for trial, quality in enumerate([0.9, 0.8, 0.1])]
    before = path.read_text()
    assert verdicts[2]
    for again in (found, book(path)):
        assert [again.stops(trial, 2, 8, point(0.99)) for trial in range(3)] == verdicts
    assert path.read_text() == before


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "rungs.jsonl"
    found = book(path)
    found.stops(0, 2, 8, point(0.9))
    whole = path.read_text()
    path.write_text(whole + '{"trial": 1, "rou')
    book(path).stops(2, 2, 8, point(0.8))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["trial"] for line in lines] == [0, 2]


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "rungs.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"rungs\.jsonl is malformed"):
        book(path)


def test_a_write_that_fails_is_said_and_none_follows_it(tmp_path):
    path = tmp_path / "gone" / "rungs.jsonl"
    found = book(path)
    with pytest.raises(StorageError, match=r"rungs\.jsonl"):
        found.stops(0, 2, 8, point(0.9))
    path.parent.mkdir()
    with pytest.raises(StorageError):
        found.stops(1, 2, 8, point(0.9))
    assert not path.exists()
    book(path).stops(0, 2, 8, point(0.9))
    assert path.is_file()
