"""Trials that were stopped early: in the study, in the tables, and in the progress."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from optuna.trial import TrialState

from ofmu.config.files import validate
from ofmu.errors import ConfigError, PruningRecord
from ofmu.run_files import RunFiles
from tune import ParetoSearch
from tune.callbacks.base import Progress
from tune.callbacks.callback_list import CallbackList
from tune.callbacks.console import describe
from tune.config import SearchConfig
from tune.execution.trial_records import TrialOutcome
from tune.results.report import write_tables
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.search import RaySearch
from tune.study.searcher import StudySearcher, open_study

BETTER_THAN_ALL = {"ks_statistic": 0.0, "model_utility": 1.0}
RECORD = PruningRecord(
    round=2,
    total=8,
    rung=0.25,
    objectives=BETTER_THAN_ALL,
    metrics={"gradient_evaluations": 30.0, "seconds": 1.5, "outer_steps_taken": 2.0},
)


@pytest.fixture
def config() -> SearchConfig:
    return validate(SearchConfig, {"search": {"num_trials": 5, "early_stopping": {"enabled": True}}})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory.create_new(tmp_path / "run")
    directory.mkdir()
    return directory


def searcher(run: RunDirectory, config: SearchConfig) -> StudySearcher:
    return StudySearcher(open_study(run.study_file, config), config, run.trial)


def test_a_pruned_trial_is_stored_with_its_record(run, config):
    found = searcher(run, config)
    may_stop = [found.suggest(name)["early_stopping"] for name in "abc"]
    assert may_stop == [False, False, True], "the two baselines never stop early"
    found.complete("a", TrialOutcome(metrics={**BETTER_THAN_ALL, "gradient_evaluations": 100}))
    found.complete("c", TrialOutcome(pruned=RECORD))
    trial = found._study.trials[2]
    assert trial.state is TrialState.PRUNED
    stored = {name: trial.user_attrs[name] for name in ("rung", "round", "total", "objectives", "metrics")}
    assert stored == RECORD.to_json()
    assert (trial.user_attrs["gradient_evaluations"], trial.user_attrs["seconds"]) == (30.0, 1.5)
    assert trial.user_attrs["reason"] == "stopped early, after round 2 of 8"
    assert found.finished_count() == 2
    assert found.spent() == 130


def test_a_pruned_trial_is_counted_and_never_in_the_front(run, config):
    found = searcher(run, config)
    for name in "abc":
        found.suggest(name)
    found.complete("a", TrialOutcome(metrics={"ks_statistic": 0.5, "model_utility": 0.5}))
    found.complete("b", TrialOutcome(failure="a reason"))
    found.complete("c", TrialOutcome(pruned=RECORD))
    result = SearchResult.from_trials(run, config, found._study.trials)
    assert result.trials["state"].tolist() == ["complete", "failed", "pruned"]
    assert result.trials.loc[2, "gradient_evaluations"] == 30
    assert result.trials.loc[2, ["ks_statistic", "model_utility"]].isna().all()
    assert result.front["trial"].tolist() == [0]
    assert result.hypervolume == pytest.approx(0.25)
    write_tables(result, 1.0)
    summary = json.loads((run.path / "search.json").read_text())
    assert (summary["complete"], summary["failed"], summary["pruned"]) == (1, 1, 1)
    progress = Progress(result, 5, 1, 1, (), 0.0, None, 1)
    assert "3/5 trials, 0 running, 1 failed, 1 pruned, front 1" in describe(progress)


def test_a_resume_stores_a_trial_that_was_pruned_after_the_kill(run, config):
    first = searcher(run, config)
    for name in "abc":
        first.suggest(name)
    run.trial(2).mkdir(parents=True)
    RunFiles(run.trial(2)).write_pruning_record(RECORD)
    second = searcher(run, config)
    states = [trial.state.name for trial in second._study.trials]
    assert states == ["RUNNING", "RUNNING", "PRUNED"]
    assert second._study.trials[2].user_attrs["metrics"] == RECORD.metrics
    assert [second.suggest(name)["number"] for name in "de"] == [0, 1]


def test_every_sampler_continues_after_pruned_trials(run, config):
    for sampler in ("tpe", "nsga2", "gp", "random"):
        config = config.model_copy(update={"search": config.search.model_copy(update={"sampler": sampler})})
        directory = RunDirectory.create_new(run.path / sampler)
        directory.mkdir()
        found = searcher(directory, config)
        for name in "abcde":
            rate = found.suggest(name)["run"]["method"]["inner_lr_scale"] / 40
            complete = TrialOutcome(metrics={"ks_statistic": rate, "model_utility": rate})
            found.complete(name, TrialOutcome(pruned=RECORD) if name in "cd" else complete)
        assert found.suggest("f") == "FINISHED"
        states = [trial.state.name for trial in found._study.trials]
        assert states == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED", "COMPLETE"]


def test_the_progress_of_a_search_without_early_stopping_does_not_mention_it(run):
    config = validate(SearchConfig, {})
    assert not config.search.early_stopping.enabled
    found = searcher(run, config)
    found.suggest("a")
    found.complete("a", TrialOutcome(metrics={"ks_statistic": 0.5, "model_utility": 0.5}))
    result = SearchResult.from_trials(run, config, found._study.trials)
    assert "pruned" not in describe(Progress(result, 5, 1, 0, (), 0.0, None))


def test_early_stopping_of_images_and_wrong_rungs_are_refused(tmp_path):
    images = {"data": {"source": "images", "path": str(tmp_path)}, "search": {"early_stopping": {"enabled": True}}}
    with pytest.raises(ConfigError, match=r"scores language models during a run.*enabled to false"):
        validate(SearchConfig, images)
    with pytest.raises(ConfigError, match=r"first_rung"):
        validate(SearchConfig, {"search": {"early_stopping": {"first_rung": 1.5}}})


def test_early_stopping_of_the_callers_executor_is_refused(tmp_path):
    search = ParetoSearch(
        {"search": {"early_stopping": {"enabled": True}}}, run_dir=tmp_path / "run", executor=lambda *_: {}
    )
    work = RaySearch(search._run, search.config, search._executor, CallbackList())
    with pytest.raises(ConfigError, match="this search has another executor"):
        work._prepare()
