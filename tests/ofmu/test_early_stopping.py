"""Runs with a round callback, and the partial evaluation that early stopping uses."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ofmu import UnlearnConfig, unlearn
from ofmu.config.files import validate
from ofmu.data.load import load_data
from ofmu.data.rows import RowSet
from ofmu.early_stopping import RoundState
from ofmu.engine.build import build_engine
from ofmu.engine.cost import CostTracker
from ofmu.errors import PrunedError, PruningRecord
from ofmu.evaluation.scores import Scores, hash_sample, row_hash
from ofmu.evaluation.scoring.partial import reduced_data
from ofmu.preparer import prepare
from ofmu.run_config import override
from ofmu.run_files import RunFiles
from ofmu.tasks.language.task import LanguageTask
from ofmu.tasks.preparation import Prepared

COSTS = ("seconds", "peak_memory_bytes")
CHECKS = 4 + 12
"""Gradient evaluations of the checks of the differences, at the first inner and at the first outer step."""


@pytest.fixture(scope="module")
def config(tiny_mapping: dict[str, Any]) -> UnlearnConfig:
    return validate(UnlearnConfig, override(tiny_mapping, ["engine.backend=torch"]))


@pytest.fixture(scope="module")
def prepared(config: UnlearnConfig) -> Prepared:
    return prepare(config)


@pytest.mark.slow
def test_a_round_callback_that_never_stops_the_run_changes_no_metric(config, prepared, tmp_path):
    seen: list[tuple[int, int, float | None]] = []

    def evaluate_rows(state: RoundState) -> None:
        assert isinstance(state.task, LanguageTask)
        values = state.task.partial_evaluation(2).metrics(state.engine, state.reference_scores).values
        seen.append((state.round, state.total, values["model_utility"]))

    plain = unlearn(config, tmp_path / "plain", prepared=prepared).metrics
    called = unlearn(config, tmp_path / "called", prepared=prepared, round_callback=evaluate_rows).metrics
    assert [(round, total) for round, total, _ in seen] == [(1, 3), (2, 3)]
    assert all(utility is not None for _, _, utility in seen)
    assert {k: v for k, v in plain.items() if k not in COSTS} == {k: v for k, v in called.items() if k not in COSTS}


@pytest.mark.slow
def test_a_stopped_run_leaves_a_record_and_no_result(config, prepared, tmp_path):
    def stop(state: RoundState) -> None:
        if state.round == 2:
            raise PrunedError(PruningRecord(round=2, total=state.total, objectives={"model_utility": 0.25}))

    with pytest.raises(PrunedError) as caught:
        unlearn(config, tmp_path, prepared=prepared, round_callback=stop)
    record = RunFiles(tmp_path).read_pruning_record()
    assert record == caught.value.record
    assert (record.round, record.total, record.objectives) == (2, 3, {"model_utility": 0.25})
    assert record.metrics["gradient_evaluations"] == 2 * (2 * 6 + 18) + CHECKS
    assert record.metrics["outer_steps_taken"] == 2
    assert record.metrics["seconds"] > 0
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "model").exists()
    # A restart of the stopped round would begin at this checkpoint.
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_000001"]

    def never(state: RoundState) -> None:
        pytest.fail("a stopped run continued")

    with pytest.raises(PrunedError) as again:
        unlearn(config, tmp_path, prepared=prepared, round_callback=never)
    assert again.value.record == record


@pytest.mark.slow
def test_a_run_that_crashed_in_its_round_callback_repeats_the_call(config, prepared, tmp_path):
    rounds: list[int] = []

    def crash_once(state: RoundState) -> None:
        rounds.append(state.round)
        if rounds == [1, 2]:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        unlearn(config, tmp_path, prepared=prepared, round_callback=crash_once)
    result = unlearn(config, tmp_path, prepared=prepared, round_callback=crash_once)
    assert rounds == [1, 2, 2]
    assert result.metrics["outer_steps_taken"] == 3


@pytest.mark.slow
def test_the_seconds_of_the_round_callback_count_as_evaluation(config, prepared, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("ofmu.engine.cost.time.perf_counter", lambda: clock[0])

    def slow(state: RoundState) -> None:
        clock[0] += 100

    unlearn(config, tmp_path, prepared=prepared, round_callback=slow)
    seconds = json.loads((tmp_path / "metrics.json").read_text())["cost"]["seconds"]
    assert seconds == {"start_up": 0, "inner": 0, "outer": 0, "evaluation": 200}


@pytest.mark.slow
def test_a_partial_evaluation_of_all_rows_is_the_evaluation_without_generation(config, prepared):
    task = LanguageTask(config, prepared.target)
    engine = build_engine(task.load_model(double_backward=False), config.engine, CostTracker())
    engine.model.train()
    partial = task.partial_evaluation(10_000).metrics(engine, prepared.reference_scores)
    assert engine.model.training
    whole = task.metrics(task.score(engine), prepared.reference_scores)
    for name in ("ks_statistic", "forget_probability", "extraction_strength", "retain_probability"):
        assert whole.values[name] is not None
        assert partial.values[name] == whole.values[name], name
    components = [name for name in whole.utility_components if "rouge" not in name]
    assert partial.utility_components == tuple(components)
    expected = len(components) / sum(1 / (whole.values[name] or 0.0) for name in components)
    assert partial.values["model_utility"] == pytest.approx(expected)


def test_a_partial_evaluation_scores_the_rows_of_the_hash_sample(config, prepared):
    data = load_data(config.data, config.seed)
    forget = data.evaluation["forget"].rows
    indices = hash_sample(forget, 3)
    task = LanguageTask(config, prepared.target)
    engine = build_engine(task.load_model(double_backward=False), config.engine, CostTracker())
    values = task.partial_evaluation(3).metrics(engine, prepared.reference_scores).values
    rows = [Scores.load(prepared.target_scores).sets["forget"][index] for index in indices]
    expected = np.mean([np.exp(-row.answer.nll / row.answer.tokens) for row in rows])
    assert values["forget_probability"] == pytest.approx(expected, rel=1e-4)
    assert values["forget_quality_rows"] == 3


def test_a_hash_sample_does_not_depend_on_the_order_of_rows(config):
    data = load_data(config.data, config.seed)
    rows = list(data.evaluation["retain"].rows)
    chosen = {row_hash(rows[index]) for index in hash_sample(rows, 4)}
    assert chosen == set(sorted(map(row_hash, rows))[:4])
    random.Random(0).shuffle(rows)
    shuffled = replace(data, evaluation={"retain": RowSet("retain", tuple(rows))})
    assert {row_hash(row) for row in reduced_data(shuffled, 4).evaluation["retain"].rows} == chosen
    assert len(hash_sample(rows, 10_000)) == len(rows)


@pytest.mark.slow
def test_a_single_loop_method_knows_its_number_of_rounds(config, prepared, tmp_path):
    for steps, rounds in ((5, 1), (6, 2), (10, 2)):
        overrides = ["method.name=npo", f"method.steps={steps}", "engine.backend=torch"]
        mapping = {**config.model_dump(mode="json"), "method": {}}
        run = validate(UnlearnConfig, override(mapping, overrides))
        calls: list[tuple[int, int]] = []

        def record_call(state: RoundState, calls: list[tuple[int, int]] = calls) -> None:
            calls.append((state.round, state.total))

        unlearn(run, tmp_path / str(steps), prepared=prepared, round_callback=record_call)
        taken = len((tmp_path / str(steps) / "history.jsonl").read_text().splitlines())
        assert taken == rounds
        assert calls == [(round, rounds) for round in range(1, rounds)]
