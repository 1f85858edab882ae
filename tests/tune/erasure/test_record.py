"""What the record of an erasure counts as its cost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from ofmu.erasure.workspace import Workspace
from ofmu.errors import RunError
from ofmu.run_files import RunFiles
from tune.erasure.record import _learning_rates, cost_record
from tune.rundir.search_dir import RunDirectory
from tune.rundir.seed_runs import Confirmation, PointRuns, SeedRun
from tune.rundir.trial_files import FailureRecord, TrialFiles


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "search")


def write_seed_run(run: RunDirectory, trial: int, seed: int, **metrics: float) -> SeedRun:
    place = run.confirmation_run(trial, seed)
    TrialFiles(place).write_report({"metrics": metrics})
    return SeedRun(seed=seed, directory=place.relative_to(run.path).as_posix(), metrics=metrics)


def cost(run: RunDirectory) -> tuple[float, float]:
    trials = pd.DataFrame(
        {
            "state": ["complete", "failed", "prior"],
            "gradient_evaluations": [5.0, 2.0, 900.0],
            "seconds": [3.0, 1.0, 9.0],
        }
    )
    result = SimpleNamespace(run_dir=run.path, trials=trials, confirmation=run.read_confirmation())
    home = Workspace(run.path.parent)
    home.start({}, "one", b"k" * 32)
    found = cost_record(result, home)  # type: ignore[arg-type]
    return found.gradient_evaluations, found.run_seconds


def test_a_search_costs_its_own_trials(run: RunDirectory):
    assert cost(run) == (7.0, 4.0)


def test_runs_of_earlier_candidates_on_further_seeds_count(run: RunDirectory):
    """After the rule allowed none of them, more trials gave other candidates, which alone are in confirmation.json."""
    write_seed_run(run, 1, 1, gradient_evaluations=10.0, seconds=20.0)
    write_seed_run(run, 1, 2, gradient_evaluations=10.0, seconds=20.0)
    present = write_seed_run(run, 4, 1, gradient_evaluations=100.0, seconds=200.0)
    points = (PointRuns(trial=4, settings={}, runs=(present,)),)
    run.write_confirmation(Confirmation(seeds=(1,), points=points))
    assert cost(run) == (127.0, 244.0)


def test_a_run_that_failed_or_did_not_finish_has_no_known_cost(run: RunDirectory):
    write_seed_run(run, 1, 1, gradient_evaluations=10.0)
    TrialFiles(run.confirmation_run(1, 2)).write_failure(FailureRecord("out of memory"))
    run.confirmation_run(1, 3).mkdir()
    assert cost(run) == (17.0, 4.0)


def test_a_damaged_file_of_a_run_is_named(run: RunDirectory):
    TrialFiles(run.confirmation_run(1, 1)).write_report({"metrics": {"seconds": "long"}})
    with pytest.raises(RunError, match=r"00001-seed1/metrics\.json is damaged"):
        cost(run)


def test_the_rates_that_range_tests_found_are_those_of_the_chosen_trial(tmp_path: Path):
    rates = {"inner_lr": 0.0125, "outer_lr": 2e-4}
    for number, stored in ((0, {"learning_rates": rates}), (1, {})):  # an older version stored none
        RunFiles(tmp_path / str(number)).write_report({"metrics": {}, **stored})
    result = SimpleNamespace(pick=lambda trial: SimpleNamespace(directory=tmp_path / str(trial)))
    assert [_learning_rates(result, trial) for trial in (0, 1)] == [rates, {}]  # type: ignore[arg-type]
