"""Early stopping inside a trial, with made-up evaluations. Searches with early stopping are in tests/integration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from ofmu.early_stopping import RoundState
from ofmu.errors import PrunedError, PruningRecord, StorageError
from tune.early_stopping.callback import EarlyStopping, EarlyStoppingCallback, intermediate_values
from tune.early_stopping.config import EarlyStoppingConfig

OBJECTIVES = ("ks_statistic", "model_utility")
CONFIG = EarlyStoppingConfig(enabled=True, rung_size=2, grace_rounds=1, first_rung=0.25)
"""Rungs at a quarter and at half of a trial's rounds."""


def point(quality: float) -> dict[str, float | None]:
    """Return values that are better in both objectives the higher ``quality`` is."""
    return {"ks_statistic": 1 - quality, "model_utility": quality}


def state_after(round: int, total: int = 8, task: Any = None) -> RoundState:
    engine: Any = SimpleNamespace(rank=0, world_size=1)
    record = {"outer_step": round, "gradient_evaluations": 10 * round, "seconds": 0.5}
    return RoundState(round=round, total=total, record=record, engine=engine, task=task, reference_scores=None)


@dataclass
class FakeDecider:
    answer: bool = False
    questions: list[tuple[Any, ...]] = field(default_factory=list)

    def should_stop(self, *question: Any) -> bool:
        self.questions.append(question)
        return self.answer


class FullDisk:
    def should_stop(self, *question: Any) -> bool:
        raise StorageError("Cannot write rungs.jsonl")


class FakeCallback(EarlyStoppingCallback):
    """A callback whose partial evaluation is a table by round."""

    scored: list[int]

    def _metrics(self, state: RoundState) -> dict[str, float | None]:
        self.scored = [*getattr(self, "scored", []), state.round]
        return point(state.round / 10)


def make_callback(decider: Any) -> FakeCallback:
    return FakeCallback(EarlyStopping(CONFIG, OBJECTIVES, decider), 7)


def test_a_trial_is_scored_and_compared_only_at_its_rungs():
    decider = FakeDecider()
    callback = make_callback(decider)
    for round in range(1, 8):
        callback(state_after(round))
    assert callback.scored == [2, 4]
    assert decider.questions == [(7, 2, 8, point(0.2)), (7, 4, 8, point(0.4))]


def test_a_stopped_run_ends_with_its_record():
    with pytest.raises(PrunedError) as caught:
        make_callback(FakeDecider(answer=True))(state_after(4))
    assert caught.value.record == PruningRecord(round=4, total=8, rung=0.5, objectives=point(0.4))
    assert "round 4 of 8" in str(caught.value)


def test_a_report_that_cannot_be_stored_ends_the_run_with_the_storage_error():
    with pytest.raises(StorageError, match=r"Cannot write rungs\.jsonl"):
        make_callback(FullDisk())(state_after(4))


def test_a_task_without_partial_evaluation_is_refused_by_name():
    callback = EarlyStopping(CONFIG, OBJECTIVES, FakeDecider()).callback_for(7)
    with pytest.raises(TypeError, match="SimpleNamespace cannot be scored during a run"):
        callback(state_after(4, task=SimpleNamespace()))


def test_metrics_of_a_partial_evaluation_become_objectives():
    metrics = {"forget_probability": 0.25, "ks_statistic": math.nan, "model_utility": None, "forget_rouge": None}
    names = ("forget_rouge", "ks_statistic", "model_utility", "gradient_evaluations", "unknown")
    values = intermediate_values(names, metrics, {"gradient_evaluations": 40})
    expected = {"forget_rouge": 0.25, "ks_statistic": None, "model_utility": None}
    assert values == {**expected, "gradient_evaluations": 40.0, "unknown": None}
