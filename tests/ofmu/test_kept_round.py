"""Runs whose model comes from an earlier round than their last one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ofmu import UnlearnConfig, unlearn
from ofmu.config.files import validate
from ofmu.early_stopping import RoundState
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.kept_round import KeptRound
from ofmu.models.language import load_model
from ofmu.preparer import prepare
from ofmu.round_decision import RoundDecision, StopAfterRound
from ofmu.run_config import override
from ofmu.tasks.preparation import Prepared

pytestmark = pytest.mark.slow

COSTS = {"seconds", "peak_memory_bytes", "gradient_evaluations", "tokens", "outer_steps_taken", "selected_round"}


@dataclass
class Selector:
    """Keeps the rounds ``kept``, ends after ``end``, selects ``selected``, and crashes once after ``crash``."""

    kept: tuple[int, ...] = (1,)
    selected: int | None = 1
    end: int | None = None
    crash: int | None = None
    seen: list[int] = field(default_factory=list)
    candidates: dict[int, Mapping[str, float | None]] = field(default_factory=dict)

    def __call__(self, state: RoundState) -> RoundDecision:
        self.seen.append(state.round)
        if state.round == self.crash:
            self.crash = None
            raise RuntimeError("killed")
        return RoundDecision(keep=state.round in self.kept, end=state.round == self.end)

    def select(self, state: RoundState, candidates: Mapping[int, Mapping[str, float | None]]) -> int:
        self.candidates = dict(candidates)
        return max(candidates) if self.selected is None else self.selected


@pytest.fixture(scope="module")
def config(tiny_mapping: dict[str, Any]) -> UnlearnConfig:
    return validate(UnlearnConfig, override(tiny_mapping, ["engine.backend=torch"]))


@pytest.fixture(scope="module")
def prepared(config: UnlearnConfig) -> Prepared:
    return prepare(config)


@pytest.fixture(scope="module")
def ended(config: UnlearnConfig, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs that simply end after round 1, 2 and 3: what any selection of these rounds must equal."""
    folder = tmp_path_factory.mktemp("ended")
    for round in (1, 2):
        unlearn(config, folder / str(round), prepared=prepared, round_callback=StopAfterRound(round))
    unlearn(config, folder / "3", prepared=prepared)
    return {round: folder / str(round) for round in (1, 2, 3)}


def metrics(directory: Path) -> dict[str, Any]:
    stored = json.loads((directory / "metrics.json").read_text())["metrics"]
    return {name: value for name, value in stored.items() if name not in COSTS}


def check_equal(directory: Path, other: Path) -> None:
    assert metrics(directory) == metrics(other)
    assert (directory / "scores.json").read_bytes() == (other / "scores.json").read_bytes()
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (directory, other))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_a_kept_round_becomes_the_model(config, prepared, ended, tmp_path):
    selector = Selector()
    result = unlearn(config, tmp_path, prepared=prepared, round_callback=selector)
    assert selector.seen == [1, 2, 3], "a selector sees the last round too"
    assert set(selector.candidates) == {1, 3}
    assert result.metrics["selected_round"] == 1
    assert result.metrics["outer_steps_taken"] == 3, "the cost is that of the whole run"
    check_equal(tmp_path, ended[1])
    assert metrics(ended[1]) != metrics(ended[3])


def test_the_last_round_stays_the_model_bit_for_bit_if_it_is_selected(config, prepared, ended, tmp_path):
    result = unlearn(config, tmp_path, prepared=prepared, round_callback=Selector(selected=None))
    assert result.metrics["selected_round"] == 3
    check_equal(tmp_path, ended[3])


def test_a_later_kept_round_replaces_an_earlier_one(config, prepared, ended, tmp_path):
    selector = Selector(kept=(1, 2), selected=2)
    unlearn(config, tmp_path, prepared=prepared, round_callback=selector)
    assert set(selector.candidates) == {2, 3}
    check_equal(tmp_path, ended[2])


def test_a_run_that_ends_early_has_its_kept_round_as_its_only_candidate(config, prepared, ended, tmp_path):
    selector = Selector(end=2)
    result = unlearn(config, tmp_path, prepared=prepared, round_callback=selector)
    assert set(selector.candidates) == {1}
    assert result.metrics["outer_steps_taken"] == 2
    check_equal(tmp_path, ended[1])


@pytest.mark.parametrize("crash", [2, 3])
def test_a_run_that_is_killed_after_a_round_was_kept_gives_the_same_model(config, prepared, ended, tmp_path, crash):
    selector = Selector(crash=crash)
    with pytest.raises(RuntimeError, match="killed"):
        unlearn(config, tmp_path, prepared=prepared, round_callback=selector)
    result = unlearn(config, tmp_path, prepared=prepared, round_callback=selector)
    assert selector.seen == [*range(1, crash + 1), *range(crash, 4)]
    assert result.metrics["selected_round"] == 1
    check_equal(tmp_path, ended[1])


def test_a_run_without_a_say_in_its_round_reports_none(ended):
    stored = {round: json.loads((path / "metrics.json").read_text())["metrics"] for round, path in ended.items()}
    assert [stored[round].get("selected_round") for round in (1, 2, 3)] == [1, 2, None]


def test_the_next_kept_round_takes_the_memory_of_the_last(config, prepared):
    cost = CostTracker()
    engine = TorchEngine(load_model(prepared.target), cost)
    first = KeptRound.of(1, engine.space)
    places, before = [part.data_ptr() for part in first.theta], [part.clone() for part in first.theta]
    with torch.no_grad():
        for master in engine.space.masters():
            master.add_(1.0)
    assert all(torch.equal(kept, old) for kept, old in zip(first.theta, before, strict=True)), "a copy"
    second = KeptRound.of(2, engine.space, reuse=first)
    assert second.round == 2
    assert [part.data_ptr() for part in second.theta] == places
    assert all(torch.equal(kept, old + 1) for kept, old in zip(second.theta, before, strict=True))
