"""A search's directory at a URI, without Ray: a folder of this machine stands for the storage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ofmu.config.files import validate
from ofmu.errors import PrunedError, PruningRecord, RunError
from ofmu.run_config import UnlearnConfig
from tune.config import SearchConfig
from tune.execution.synced_executor import SyncedExecutor
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.study.searcher import StudySearcher, open_study

METRICS = {"ks_statistic": 0.5, "model_utility": 0.4, "seconds": 1.0}


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OFMU_CACHE", str(tmp_path / "cache"))
    (tmp_path / "remote").mkdir()
    return f"file://{tmp_path}/remote/run"


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    return tmp_path / "remote" / "run"


def run_one_trial(run: RunDirectory, executor: Callable[..., Mapping[str, Any]]) -> int:
    """Run the next trial of the search, and return its number."""
    config = run.read_config()
    searcher = StudySearcher(open_study(run.study_file, config), config, run.trial)
    specification = searcher.suggest("a")
    assert isinstance(specification, dict)
    directory = Path(specification["trial_dir"])
    directory.mkdir(parents=True)
    metrics = executor(UnlearnConfig.model_validate(specification["run"]), None, directory, None)
    searcher.on_trial_complete("a", {"outcome": json.dumps({"metrics": metrics})})
    run.mark_dirty()
    return int(specification["number"])


def write_model(config: UnlearnConfig, cluster: Any, trial_dir: Path, prepared: Any) -> dict[str, float]:
    for name in ("model", "checkpoints"):
        (trial_dir / name).mkdir()
        (trial_dir / name / "weights").write_text("1")
    return METRICS


@pytest.mark.slow
def test_files_are_uploaded_and_read_back(uri: str, remote: Path) -> None:
    run = RunDirectory.create_new(uri)
    run.mkdir()
    with run.lock():
        run.write_config(validate(SearchConfig, {"search": {"num_trials": 3}}))
        number = run_one_trial(run, SyncedExecutor(write_model, uri))
        assert [path.name for path in run.trial(number).iterdir()] == ["metrics.json"]
    assert {path.name for path in remote.iterdir()} == {"config.yaml", "environment.json", "study.log", "trials"}
    assert {path.name for path in (remote / "trials" / "00000").iterdir()} == {"metrics.json", "model"}
    result = SearchResult.load(uri)
    assert result.trials["state"].tolist() == ["complete"]
    assert result.pick(0).export(remote.parent / "exported").joinpath("weights").read_text() == "1"
    with pytest.raises(RunError, match=f"{uri} already holds a run: continue it with --resume {uri}"):
        RunDirectory.create_new(uri)


@pytest.mark.slow
def test_a_resume_replaces_the_working_copy_and_deletes_models_at_the_uri(uri: str, remote: Path) -> None:
    run = RunDirectory.create_new(uri)
    run.mkdir()
    with run.lock():
        run.write_config(validate(SearchConfig, {"search": {"num_trials": 3}}))
        number = run_one_trial(run, SyncedExecutor(write_model, uri))
    (run.path / "trials.csv").write_text("of another session")
    resumed = RunDirectory.open_existing(uri)
    with resumed.lock():
        assert not resumed.trials_table.exists()
        resumed.fetch_trial(number)
        assert [path.name for path in resumed.trial(number).iterdir()] == ["metrics.json"]
        resumed.delete_model(number)
    assert not (remote / "trials" / "00000" / "model").exists()


def test_a_finished_trial_runs_only_once_and_a_pruned_one_leaves_no_model(uri: str, remote: Path, tmp_path) -> None:
    calls = []

    def count(config: UnlearnConfig, cluster: Any, trial_dir: Path, prepared: Any) -> dict[str, float]:
        calls.append(trial_dir.name)
        write_model(config, cluster, trial_dir, prepared)
        if trial_dir.name == "00001":
            raise PrunedError(PruningRecord(round=1, total=2))
        return METRICS

    executor, config = SyncedExecutor(count, uri), UnlearnConfig()
    for name in ("00000", "00001"):
        (tmp_path / name).mkdir()
    assert executor(config, None, tmp_path / "00000", None) == METRICS
    assert executor(config, None, tmp_path / "00000", None) == METRICS
    with pytest.raises(PrunedError):
        executor(config, None, tmp_path / "00001", None)
    assert calls == ["00000", "00001"]
    assert not (remote / "trials" / "00001").exists()
