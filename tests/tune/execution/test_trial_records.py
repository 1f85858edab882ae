"""The records of a trial survive their way through JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ofmu.errors import PruningRecord
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles
from tune.execution.trial_records import TrialOutcome, TrialSpec

RECORD = PruningRecord(round=2, total=8, rung=0.25, objectives={"ks_statistic": None}, metrics={"seconds": 1.5})


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_spec_is_read_back_as_it_was(early_stopping):
    run = UnlearnConfig.model_validate({"method": {"name": "npo", "lr": 0.25}, "seed": 4})
    spec = TrialSpec(number=7, trial_dir=Path("run/trials/00007"), run=run, early_stopping=early_stopping)
    assert TrialSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "outcome",
    [
        TrialOutcome(metrics={"ks_statistic": 0.5, "model_utility": None}),
        TrialOutcome(metrics={}),
        TrialOutcome(pruned=RECORD),
        TrialOutcome(failure="the loss became NaN"),
        TrialOutcome(storage_error="Cannot write metrics.json"),
        TrialOutcome(),
    ],
)
def test_an_outcome_is_read_back_as_it_was(outcome):
    assert TrialOutcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_a_directory_tells_how_its_run_ended(tmp_path):
    files = RunFiles(tmp_path)
    assert TrialOutcome.stored_in(files) is None
    files.write_pruning_record(RECORD)
    assert TrialOutcome.stored_in(files) == TrialOutcome(pruned=RECORD)
    files.write_report({"metrics": {"seconds": 2.0}})
    assert TrialOutcome.stored_in(files) == TrialOutcome(metrics={"seconds": 2.0}), "a whole run counts as complete"
