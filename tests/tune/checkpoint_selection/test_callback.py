"""Checkpoint selection inside a trial, with made-up evaluations. Searches with it are in tests/integration."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from ofmu.early_stopping import RoundSelector, RoundState
from ofmu.errors import PrunedError, StorageError
from ofmu.round_decision import RoundDecision
from tune.checkpoint_selection.archive import Scored, Verdict
from tune.checkpoint_selection.callback import CheckpointSelection, CheckpointSelectionCallback
from tune.checkpoint_selection.config import CheckpointSelectionConfig
from tune.space.constraints import Limit

LIMITS = (Limit("model_utility", "min", 0.8), Limit("retain_rouge", "min", 0.9))


@dataclass
class FakeArchive:
    verdict: Verdict = field(default_factory=Verdict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def report(self, *call: Any) -> Verdict:
        self.calls.append(call)
        return self.verdict

    def select(self, trial: int, candidates: dict[int, Scored]) -> int:
        self.calls.append((trial, candidates))
        return min(candidates)


class FullDisk(FakeArchive):
    def report(self, *call: Any) -> Verdict:
        raise StorageError("Cannot write rounds.jsonl")


def state_after(round: int, total: int = 8, kept: int | None = None) -> RoundState:
    engine: Any = SimpleNamespace(rank=0, world_size=1)
    return RoundState(
        round=round,
        total=total,
        record={"gradient_evaluations": 10 * round},
        engine=engine,
        task=None,  # type: ignore[arg-type]
        reference_scores=None,
        kept_round=kept,
    )


def make(archive: FakeArchive, *objectives: str) -> CheckpointSelectionCallback:
    names = objectives or ("ks_statistic", "model_utility")
    callback = CheckpointSelection(CheckpointSelectionConfig(enabled=True), names, LIMITS, archive).callback_for(7)
    partial: Any = SimpleNamespace(
        metrics=lambda state: {"ks_statistic": state.round / 10, "model_utility": 0.6, "forget_probability": 0.3}
    )
    callback._scores = partial
    return callback


def test_a_trial_is_scored_at_its_scored_rounds_and_after_its_last():
    archive = FakeArchive()
    callback = make(archive)
    assert isinstance(callback, RoundSelector)
    answers = [callback(state_after(round)) for round in range(1, 9)]
    assert [call[:3] for call in archive.calls] == [(7, 2, 8), (7, 4, 8), (7, 6, 8), (7, 8, 8)]
    assert [answer is not None for answer in answers] == [round in (2, 4, 6, 8) for round in range(1, 9)]
    # utility .6 of at least .8: a quarter of the way to 0; the bound on ROUGE waits for the whole evaluation
    assert archive.calls[0][3] == Scored({"ks_statistic": 0.2, "model_utility": 0.6}, pytest.approx(0.25))


def test_objectives_that_need_text_or_cost_are_those_of_early_stopping():
    archive = FakeArchive()
    make(archive, "forget_rouge", "gradient_evaluations")(state_after(2))
    assert archive.calls[0][3].values == {"forget_rouge": 0.3, "gradient_evaluations": 20}


def test_a_round_is_kept_if_the_archive_says_so():
    assert make(FakeArchive(Verdict(keep=True)))(state_after(2)) == RoundDecision(keep=True)


def test_a_stopped_trial_without_a_kept_round_is_pruned():
    with pytest.raises(PrunedError) as caught:
        make(FakeArchive(Verdict(stop=True)))(state_after(4))
    assert (caught.value.record.round, caught.value.record.total) == (4, 8)
    assert caught.value.record.objectives == {"ks_statistic": 0.4, "model_utility": 0.6}


def test_a_stopped_trial_ends_with_the_round_that_it_kept():
    assert make(FakeArchive(Verdict(stop=True)))(state_after(4, kept=2)) == RoundDecision(end=True)


def test_the_candidates_are_compared_by_all_constraints():
    archive = FakeArchive()
    metrics = {"ks_statistic": 0.5, "model_utility": 0.9, "retain_rouge": 0.45}
    worse = metrics | {"ks_statistic": float("nan")}
    assert make(archive).select(state_after(8), {2: metrics, 8: worse}) == 2
    ((trial, candidates),) = archive.calls
    assert trial == 7
    assert candidates[2] == Scored({"ks_statistic": 0.5, "model_utility": 0.9}, pytest.approx(0.5))
    assert candidates[8].values == {"ks_statistic": None, "model_utility": 0.9}


def test_a_full_disk_ends_the_trial_with_its_sentence():
    with pytest.raises(StorageError, match=r"Cannot write rounds\.jsonl"):
        make(FullDisk())(state_after(2))
