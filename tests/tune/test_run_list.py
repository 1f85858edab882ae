"""When the list of runs calls a search complete, and a run running."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ofmu.io.environment import environment
from ofmu.io.files import write_json
from ofmu.io.lock import locked
from ofmu.run_files import RunFiles
from tune import AskTell
from tune.run_list import list_runs

METRICS = {"ks_statistic": 0.5, "model_utility": 0.8, "gradient_evaluations": 10.0}
BASELINES = {"num_trials": 200, "baselines": ["target"]}
NO_TIME = {**BASELINES, "max_hours": 1e-9}
TWENTY = {**BASELINES, "max_gradient_evaluations": 20}


def search(folder: Path, trials: int, options: dict[str, Any], *, unfinished: int = 0) -> None:
    """Write a search with so many finished trials of ten gradient evaluations each, and some that were asked for."""
    with AskTell({"method": {"name": "npo"}, "search": options}, run_dir=folder / "run") as loop:
        asked = [loop.ask() for _ in range(trials + unfinished)]
        for trial in asked[:trials]:
            assert trial is not None
            loop.tell(trial, METRICS)


def edit(folder: Path, **changes: Any) -> None:
    """Change values of ``search.json``. None takes a value away, as in the file of an older version."""
    file = folder / "run" / "search.json"
    stored = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in stored.items() if value is not None}))


def state(folder: Path) -> str:
    (entry,) = list_runs(folder)
    return entry.state


@pytest.mark.parametrize("version", ["this", "older"])
@pytest.mark.parametrize(
    ("trials", "options", "expected"),
    [
        (1, NO_TIME, "complete"),
        (1, {**BASELINES, "max_hours": 100.0}, "interrupted"),
        (1, TWENTY, "interrupted"),
        (2, TWENTY, "complete"),
        (2, {**BASELINES, "num_trials": 2}, "complete"),
    ],
)
def test_a_search_that_used_up_its_budget_is_complete(
    tmp_path: Path, version: str, trials: int, options: dict[str, Any], expected: str
):
    search(tmp_path, trials, options)
    if version == "older":
        edit(tmp_path, is_over=None)
    assert state(tmp_path) == expected


def test_a_search_whose_last_trials_were_killed_is_interrupted(tmp_path: Path):
    search(tmp_path, 1, {**NO_TIME, "baselines": ["target", "published"]}, unfinished=1)
    assert state(tmp_path) == "interrupted"


def test_a_search_that_was_given_more_trials_is_not_complete_before_they_ran(tmp_path: Path):
    search(tmp_path, 2, {**BASELINES, "num_trials": 2})
    AskTell.resume(tmp_path / "run", ["search.num_trials=3"]).close()
    assert state(tmp_path) == "interrupted"


@pytest.mark.parametrize("stored", [None, "metrics.json"])
def test_a_run_whose_process_works_is_running(tmp_path: Path, stored: str | None):
    files = RunFiles(tmp_path / "run")
    write_json(files.environment, environment())
    files.write_config({"method": {"name": "npo"}})
    if stored:
        write_json(files.directory / stored, {"metrics": METRICS})
    with locked(files.directory, "busy"):
        assert state(tmp_path) == ("complete" if stored else "running")
    assert state(tmp_path) == ("complete" if stored else "not complete")


def test_an_evaluation_names_no_method(tmp_path: Path):
    """The config of an evaluation says which data was used, and may be that of a run that did not make the model."""
    report = {"model": "target", "metrics": METRICS, "config": {"method": {"name": "npo"}}}
    write_json(tmp_path / "target" / "metrics.json", report | {"environment": {}, "baseline_metrics": {}})
    (entry,) = list_runs(tmp_path)
    assert (entry.kind, entry.state, entry.method) == ("evaluation", "complete", "")
