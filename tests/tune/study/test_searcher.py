from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from rich.console import Console

from ofmu.config.files import validate
from ofmu.errors import ConfigError
from tune.callbacks.console import ConsoleCallback
from tune.config import SearchConfig
from tune.execution.trial_records import TrialOutcome
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.space.constraints import Limit
from tune.study.baselines import PUBLISHED, baseline_settings
from tune.study.searcher import StudySearcher, open_study
from tune.study.storage import read_study

SPACE = {
    "method.inner_update": ["sgd", "normalized", "adamw"],
    "method.inner_lr": {"low": 0.02, "high": 0.1, "log": True},
    "method.outer_lr": {"low": 1e-4, "high": 1e-3, "when": {"method.inner_update": ["sgd", "adamw"]}},
    "method.outer_steps": {"low": 2, "high": 10, "step": 2},
    "method.similarity_threshold": {"low": -0.5, "high": 0.5},
    "method.penalty_growth": 1.25,
}


def make(num_trials: int = 12, sampler: str = "tpe", **search: Any) -> SearchConfig:
    settings = {"space": SPACE, "num_trials": num_trials, "sampler": sampler, **search}
    return validate(SearchConfig, {"search": settings, "seed": 3, "method": {"inner_lr": 0.05, "outer_lr": 1e-3}})


def searcher(run: RunDirectory, config: SearchConfig) -> StudySearcher:
    return StudySearcher(open_study(run.study_file, config), config, run.trial)


def finish(found: StudySearcher, ray_id: str, **metrics: Any) -> None:
    found.on_trial_complete(ray_id, {"outcome": json.dumps(TrialOutcome(metrics=metrics).to_json()), "done": True})


def score(spec: dict[str, Any]) -> dict[str, float]:
    method = spec["run"]["method"]
    return {"ks_statistic": 1 - method["inner_lr"], "model_utility": 0.5 + method["outer_lr"]}


def trials(run: RunDirectory) -> list[optuna.trial.FrozenTrial]:
    return read_study(run.study_file).trials


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory.create_new(tmp_path / "run")
    directory.mkdir()
    return directory


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", pytest.param("gp", marks=pytest.mark.slow), "random"])
def test_every_sampler_draws_inside_the_space(run, sampler):
    config = make(sampler=sampler)
    found = searcher(run, config)
    for index in range(12):
        spec = found.suggest(f"ray{index}")
        finish(found, f"ray{index}", **score(spec))
    assert found.suggest("more") == "FINISHED"
    for trial in trials(run):
        assert trial.state is TrialState.COMPLETE
        conditional = trial.params["method.inner_update"] in ("sgd", "adamw")
        assert ("method.outer_lr" in trial.params) == conditional
        assert 0.02 <= trial.params["method.inner_lr"] <= 0.1
        assert trial.params["method.outer_steps"] in (2, 4, 6, 8, 10)
        assert "method.penalty_growth" not in trial.params
        if trial.user_attrs["role"] == "sampled":
            assert trial.user_attrs["overrides"] == {**trial.params, "method.penalty_growth": 1.25}


def test_the_baselines_come_first_and_run_with_their_own_settings(run):
    found = searcher(run, make())
    target, published, other = (found.suggest(name) for name in "abc")
    assert target["run"]["method"]["outer_steps"] == 0
    for key, value in baseline_settings(make())[PUBLISHED].items():
        assert published["run"]["method"][key.removeprefix("method.")] == value
    assert [item["number"] for item in (target, published, other)] == [0, 1, 2]
    stored = trials(run)
    assert [trial.user_attrs["role"] for trial in stored] == ["target", "published", "sampled"]
    assert stored[1].params["method.similarity_threshold"] == -0.5
    assert stored[1].params["method.inner_lr"] == 0.02


def test_the_published_setting_can_be_left_out(run):
    found = searcher(run, make(baselines=["target"]))
    for name in "ab":
        found.suggest(name)
    assert [trial.user_attrs["role"] for trial in trials(run)] == ["target", "sampled"]


def test_the_target_cannot_be_left_out():
    with pytest.raises(ConfigError, match=r"search\.baselines lacks 'target'"):
        make(baselines=["published"])


@pytest.mark.parametrize(("distances", "forgets_more"), [((0.9, 0.9), False), ((0.9, 0.8), True)])
def test_a_front_that_forgets_no_more_than_the_target_says_so(run, distances, forgets_more):
    config = make(baselines=["target"])
    found = searcher(run, config)
    for name, distance in zip("ab", distances, strict=True):
        found.suggest(name)
        finish(found, name, ks_statistic=distance, model_utility=0.5 + (name == "b") / 10)
    result = SearchResult.from_trials(run, config, trials(run))
    assert result.forgets_more_than_target is forgets_more
    output = io.StringIO()
    ConsoleCallback(Console(file=output, width=200)).show_result(result)
    assert ("No trial has a better ks_statistic than the untouched target" in output.getvalue()) is not forgets_more
    assert ("ofmu export" in output.getvalue()) is forgets_more


def test_constraints_may_be_why_no_trial_forgets_more_than_the_target(run):
    config = make(baselines=["target"], constraints={"model_utility": {"min": 0.5}})
    found = searcher(run, config)
    for name, distance, utility in (("a", 0.9, 0.7), ("b", 0.1, 0.2)):
        found.suggest(name)
        finish(found, name, ks_statistic=distance, model_utility=utility)
    output = io.StringIO()
    limits = (Limit("model_utility", "min", 0.5),)
    result = SearchResult.from_trials(run, config, trials(run), limits)
    ConsoleCallback(Console(file=output, width=200)).show_result(result)
    sentence = "No trial that keeps the constraints has a better ks_statistic than the untouched target: loosen search"
    assert sentence in output.getvalue()


def test_every_end_is_stored_with_its_reason(run):
    found = searcher(run, make(num_trials=7))
    for name in "abcdefg":
        found.suggest(name)
    finish(found, "a", ks_statistic=0.9, model_utility=0.6, seconds=2.5)
    finish(found, "b", ks_statistic=math.nan, model_utility=0.6)
    finish(found, "c", model_utility=0.6)
    finish(found, "d", ks_statistic=math.inf, model_utility=0.6)
    found.complete("e", TrialOutcome(failure="the loss became NaN"))
    found.on_trial_complete("f", error=True)
    found.fail("f", "the process died")
    found.close("the search ended")
    ended = trials(run)
    assert [trial.state.name for trial in ended] == ["COMPLETE", *["FAIL"] * 6]
    reasons = [trial.user_attrs.get("reason") for trial in ended]
    assert reasons[0] is None
    assert "nan" in reasons[1]
    assert "no ks_statistic" in reasons[2]
    assert "inf" in reasons[3]
    assert reasons[4:] == ["the loss became NaN", "the process died", "the search ended"]
    assert ended[0].user_attrs["seconds"] == 2.5
    assert ended[0].user_attrs["metrics"]["ks_statistic"] == 0.9


def test_contradicting_draws_fail_and_the_search_continues(run):
    # Each choice works with the defaults. Both together do not work.
    space = {"method.derivative": ["central", "reverse_over_forward"], "engine.gradient_checkpointing": [False, True]}
    base = {"search": {"space": space, "num_trials": 20, "sampler": "random"}}
    config = validate(SearchConfig, base)
    found = searcher(run, config)
    count = 0
    while (spec := found.suggest(str(count))) != "FINISHED":
        finish(found, str(count), ks_statistic=0.5, model_utility=0.5)
        run_of_trial = spec["run"]
        assert run_of_trial["method"]["derivative"] == "central" or not run_of_trial["engine"]["gradient_checkpointing"]
        count += 1
    ended = trials(run)
    assert len(ended) == 20
    failed = [trial for trial in ended if trial.state is TrialState.FAIL]
    assert 0 < len(failed) < 20
    assert all("gradient_checkpointing" in trial.user_attrs["reason"] for trial in failed)


def test_the_study_opens_in_optuna_with_names_and_directions(run):
    open_study(run.study_file, make())
    backend = JournalFileBackend(str(run.study_file))
    study = optuna.load_study(study_name="ofmu", storage=optuna.storages.JournalStorage(backend))
    assert [way.name for way in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert study.metric_names == ["ks_statistic", "model_utility"]


def test_interrupted_trials_of_a_killed_search_run_again(run):
    config = make(num_trials=6)
    killed = searcher(run, config)
    specs = {name: killed.suggest(name) for name in "abcd"}
    finish(killed, "a", **score(specs["a"]))
    # b ended, but its end was not stored. c and d were running.
    done = run.trial(specs["b"]["number"])
    done.mkdir(parents=True)
    (done / "metrics.json").write_text(json.dumps({"metrics": {"ks_statistic": 0.8, "model_utility": 0.4}}))

    resumed = searcher(run, config)
    states = [trial.state.name for trial in trials(run)]
    assert states == ["COMPLETE", "COMPLETE", "RUNNING", "RUNNING"]
    again = [resumed.suggest(name) for name in "xyzw"]
    assert again[:2] == [specs["c"], specs["d"]]
    assert [item["number"] for item in again] == [2, 3, 4, 5]
    assert resumed.suggest("v") is None, "a running trial may have to run again"
    resumed.take_back("y")
    assert resumed.suggest("y") == again[1]
    for name, spec in zip("xyzw", again, strict=True):
        finish(resumed, name, **score(spec))
    assert resumed.suggest("v") == "FINISHED"
    assert {trial.state for trial in trials(run)} == {TrialState.COMPLETE}


def test_a_kill_in_the_middle_of_a_draw_loses_no_trial(run):
    config = make()
    study = open_study(run.study_file, config)
    study.ask()
    study.ask()
    study.ask().suggest_categorical("method.inner_update", SPACE["method.inner_update"])
    resumed = searcher(run, config)
    assert [resumed.suggest(name)["number"] for name in "abcd"] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_resumed_search_draws_what_an_uninterrupted_search_draws(tmp_path):
    drawn: list[list[Any]] = []
    for interrupted in (False, True):
        directory = RunDirectory.create_new(tmp_path / str(interrupted))
        directory.mkdir()
        config = make(num_trials=10)
        found, numbers = searcher(directory, config), []
        for index in range(10):
            if interrupted and index == 6:
                found = searcher(directory, config)
            spec = found.suggest(str(index))
            numbers.append(spec["run"])
            finish(found, str(index), **score(spec))
        drawn.append(numbers)
    assert drawn[0] == drawn[1]


def test_a_search_ends_once_its_hours_are_over(run):
    """The clock is the caller's, so that no test waits."""
    config, seconds = make(num_trials=50, max_hours=0.5), [0.0]
    found = StudySearcher(open_study(run.study_file, config), config, run.trial, seconds=lambda: seconds[0])
    assert found.expected_total() == 50
    for index, end in enumerate((400.0, 800.0, 1799.0)):
        spec = found.suggest(f"ray{index}")
        seconds[0] = end
        finish(found, f"ray{index}", **score(spec))
    assert not found.budget_reached()
    assert found.expected_total() == 4
    running = found.suggest("ray3")
    assert isinstance(running, dict)
    seconds[0] = 1800.0
    assert found.budget_reached()
    assert found.suggest("ray4") != running
    finish(found, "ray3", **score(running))
    assert found.suggest("ray5") == "FINISHED"
    assert found.finished_count() == 4


def test_the_baselines_run_even_if_preparation_took_all_hours(run):
    config = make(num_trials=50, max_hours=0.5)
    found = StudySearcher(open_study(run.study_file, config), config, run.trial, seconds=lambda: 7200.0)
    for index in range(2):
        finish(found, f"ray{index}", **score(found.suggest(f"ray{index}")))
    assert found.suggest("more") == "FINISHED"
    assert [trial.user_attrs["role"] for trial in trials(run)] == ["target", "published"]
