"""One step of a trial's process, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ofmu.errors import NonFiniteLossError, PrunedError, PruningRecord, StorageError
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles
from tune.early_stopping.callback import EarlyStopping, EarlyStoppingCallback
from tune.early_stopping.config import EarlyStoppingConfig
from tune.execution.trainable import UnlearningTrial
from tune.execution.trial_records import TrialOutcome, TrialSpec

RECORD = PruningRecord(round=1, total=4)


def step(spec: TrialSpec, executor: Any, early_stopping: EarlyStopping | None = None) -> TrialOutcome:
    trial = UnlearningTrial.__new__(UnlearningTrial)
    trial.setup(spec.to_json(), executor=executor, early_stopping=early_stopping)
    result = trial.step()
    assert result["done"] is True
    return TrialOutcome.from_json(json.loads(result["outcome"]))


@pytest.fixture
def spec(tmp_path: Path) -> TrialSpec:
    return TrialSpec(number=3, trial_dir=tmp_path / "00003", run=UnlearnConfig(seed=4), early_stopping=True)


def test_a_complete_run_returns_and_leaves_its_metrics(spec):
    outcome = step(spec, lambda config, cluster, trial_dir, prepared: {"score": np.float32(config.seed), "seconds": 2})
    assert outcome == TrialOutcome(metrics={"score": 4.0, "seconds": 2})
    assert RunFiles(spec.trial_dir).read_metrics() == {"score": 4.0, "seconds": 2}


def test_a_run_that_is_complete_does_not_run_again(spec):
    spec.trial_dir.mkdir()
    RunFiles(spec.trial_dir).write_report({"metrics": {"score": 1.0}})
    assert step(spec, lambda *arguments: pytest.fail("it ran again")) == TrialOutcome(metrics={"score": 1.0})


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (PrunedError(RECORD), TrialOutcome(pruned=RECORD)),
        (StorageError("the disk is full"), TrialOutcome(storage_error="the disk is full")),
        (NonFiniteLossError("the loss became NaN"), TrialOutcome(failure="the loss became NaN")),
    ],
)
def test_an_error_that_would_repeat_is_an_outcome(spec, error, outcome):
    def fail(*arguments: Any) -> Any:
        raise error

    assert step(spec, fail) == outcome


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")]
)
def test_a_trial_without_room_fails_with_the_fix(spec, error):
    def fail(*arguments: Any) -> Any:
        raise error

    outcome = step(spec, fail)
    assert outcome.failure is not None
    assert "lower engine.micro_batch_size" in outcome.failure


def test_any_other_error_is_left_to_ray(spec):
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        step(spec, fail)


def test_only_a_trial_that_may_stop_gets_a_round_callback(spec):
    given: list[dict[str, Any]] = []

    def execute(config: Any, cluster: Any, trial_dir: Path, prepared: Any, **keywords: Any) -> dict[str, float]:
        given.append(keywords)
        return {}

    early_stopping = EarlyStopping(EarlyStoppingConfig(enabled=True), ("ks_statistic",), decider=None)  # type: ignore[arg-type]
    step(spec, execute, early_stopping)
    step(TrialSpec(number=0, trial_dir=spec.trial_dir.with_name("00000"), run=spec.run), execute, early_stopping)
    assert isinstance(given[0]["round_callback"], EarlyStoppingCallback)
    assert given[1] == {}
