"""The base of the searchers: which ends reach the subclass, and what stops a search."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from ofmu.run_config import UnlearnConfig
from tune.execution.trial_records import TrialOutcome, TrialSpec
from tune.execution.trial_source import TrialSource


class Numbers(TrialSource[int]):
    """A source of three trials that notes their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = [0, 1, 2]
        self.ends: list[tuple[int, TrialOutcome]] = []

    def _start_next(self) -> tuple[int, TrialSpec] | None:
        if not self.waiting:
            return None
        number = self.waiting.pop(0)
        return number, TrialSpec(number=number, trial_dir=Path(str(number)), run=UnlearnConfig())

    def _take_back(self, trial: int) -> None:
        self.waiting.append(trial)

    def _store_end(self, trial: int, outcome: TrialOutcome) -> None:
        self.ends.append((trial, outcome))


@pytest.fixture
def source() -> Numbers:
    return Numbers()


def end(source: Numbers, key: str, outcome: TrialOutcome) -> None:
    source.on_trial_complete(key, {"outcome": json.dumps(outcome.to_json()), "done": True})


def test_ray_gets_specs_as_json_until_there_are_no_more(source):
    found = [source.suggest(key) for key in "abcd"]
    assert [TrialSpec.from_json(spec).number for spec in found[:3]] == [0, 1, 2]
    assert found[3] is None, "a running trial may have to be handed out again, and Ray never asks after FINISHED"
    for key in "abc":
        end(source, key, TrialOutcome())
    assert source.suggest("d") == "FINISHED"


def test_a_trial_that_is_taken_back_is_handed_out_again(source):
    first = [source.suggest(key) for key in "abc"]
    source.take_back("b")
    source.take_back("b")
    assert source.suggest("d") == first[1]
    assert source.ends == []


def test_every_kind_of_end_reaches_the_subclass_once(source):
    for key in "abc":
        source.suggest(key)
    end(source, "b", TrialOutcome(metrics={"seconds": 1.0}))
    end(source, "b", TrialOutcome(metrics={"seconds": 2.0}))
    source.fail("b", "too late")
    source.on_trial_complete("a")
    assert source.ends == [(1, TrialOutcome(metrics={"seconds": 1.0})), (0, TrialOutcome())]


def test_a_crash_is_stored_with_its_reason_and_not_before(source):
    source.suggest("a")
    source.on_trial_complete("a", error=True)
    assert source.ends == []
    source.fail("a", "the process died")
    assert source.ends == [(0, TrialOutcome(failure="the process died"))]


def test_a_failed_write_stops_the_source_and_stores_no_end(source):
    source.suggest("a")
    end(source, "a", TrialOutcome(storage_error="Cannot write metrics.json: free some space"))
    assert str(source.stopped_by) == "Cannot write metrics.json: free some space"
    assert source.ends == []
    assert source.suggest("b") == "FINISHED"
    assert source.waiting == [1, 2]


def test_rays_own_checkpoint_of_the_source_holds_nothing(source, tmp_path):
    source.suggest("a")
    source.save(str(tmp_path / "state"))
    assert (tmp_path / "state").read_text() == "{}"
    assert vars(pickle.loads(pickle.dumps(source))) == {}
