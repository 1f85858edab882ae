from __future__ import annotations

import json
from pathlib import Path

from cluster.train.files import RAY_TRAIN
from tune.results.report import write_plot, write_tables
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.rundir.search_files import SearchSummary
from tune.rundir.trial_files import ERROR, LARGE_FOLDERS, FailureRecord, TrialFiles

SUMMARY = SearchSummary(
    complete=1,
    failed=2,
    pruned=3,
    asked=6,
    seconds=1.5,
    objectives={"ks_statistic": "min", "model_utility": "max"},
    hypervolume=0.25,
    hypervolume_reference={"ks_statistic": 1.0, "model_utility": 0.0},
    front=[0],
    knee=None,
)


def test_the_summary_is_read_back_and_gives_the_seconds(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.read_summary() is None
    assert run.seconds() == 0
    run.write_summary(SUMMARY)
    assert run.read_summary() == SUMMARY
    assert run.seconds() == 1.5
    assert list(json.loads(run.summary_file.read_text())) == list(SUMMARY.to_json())


def test_metrics_that_are_no_number_are_not_read_as_reference(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.read_reference() == {}
    run.write_reference({"ks_statistic": 0, "forget_rouge": None})
    assert run.read_reference() == {"ks_statistic": 0.0}


def test_reports_have_the_documented_names(tmp_path):
    """Users and notebooks read these files by name."""
    from ofmu.config.files import validate
    from tune.config import SearchConfig

    result = SearchResult.from_trials(RunDirectory(tmp_path), validate(SearchConfig, {}), [])
    write_tables(result, 2.0)
    write_plot(result)
    assert {path.name for path in tmp_path.iterdir()} == {"trials.csv", "front.csv", "front.png", "search.json"}


def test_only_models_outside_of_the_front_are_deleted(tmp_path):
    run = RunDirectory(tmp_path)
    for keep, left in (("all", {0, 1}), ("front", {1}), ("none", set())):
        for number in (0, 1):
            (run.trial(number) / "model").mkdir(parents=True, exist_ok=True)
        run.delete_models([0, 1], {1}, keep)
        assert {number for number in (0, 1) if (run.trial(number) / "model").is_dir()} == left


def test_a_failure_is_read_back(tmp_path: Path):
    files = TrialFiles(tmp_path)
    assert files.read_failure() is None
    files.write_failure(FailureRecord("out of memory"))
    assert files.read_failure() == FailureRecord("out of memory")
    assert json.loads((tmp_path / "failed.json").read_text()) == {"reason": "out of memory"}


def test_the_metrics_of_the_run_itself_are_kept(tmp_path: Path):
    files = TrialFiles(tmp_path)
    files.write_metrics_if_missing({"ks_statistic": float("nan"), "seconds": 2.0})
    assert files.read_metrics() == {"ks_statistic": None, "seconds": 2.0}
    files.write_metrics_if_missing({"seconds": 3.0})
    assert files.read_metrics() == {"ks_statistic": None, "seconds": 2.0}


def test_folders_are_deleted_and_files_kept(tmp_path: Path):
    files = TrialFiles(tmp_path)
    files.write_error("Failure # 1")
    for name in LARGE_FOLDERS:
        (tmp_path / name).mkdir()
    assert RAY_TRAIN in LARGE_FOLDERS
    files.delete_folders(LARGE_FOLDERS)
    assert [path.name for path in tmp_path.iterdir()] == [ERROR]
