from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from ofmu.config.files import validate
from tune.callbacks.callback_list import CallbackList
from tune.config import SearchConfig
from tune.execution.trial_records import TrialOutcome, TrialSpec
from tune.results.incremental import RunningResult, TimeBudget
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.search import RaySearch

OBJECTIVES = {"ks_statistic": "min", "model_utility": "max", "seconds": "min"}
GRID = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
SETTINGS = {"method.inner_lr": st.sampled_from([0.02, 0.05]), "method.outer_steps": st.integers(1, 3)}
OTHERS = {"tokens": st.one_of(st.integers(1, 9), st.just(2.5), st.none()), "forget_truth_ratio": GRID}


@st.composite
def a_trial(draw: Any) -> FrozenTrial:
    state = draw(st.sampled_from([TrialState.COMPLETE] * 4 + [TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING]))
    overrides = {key: draw(value) for key, value in SETTINGS.items() if draw(st.booleans())}
    attributes = {"role": draw(st.sampled_from(["sampled", "published"])), "overrides": overrides}
    metrics = {name: draw(values) for name, values in OTHERS.items() if draw(st.booleans())}
    values = None
    if state is TrialState.COMPLETE:
        values = [draw(GRID) for _ in OBJECTIVES]
        metrics |= dict(zip(OBJECTIVES, values, strict=True))
    if state is not TrialState.RUNNING:
        attributes["metrics"] = metrics
    if state is TrialState.FAIL:
        attributes["reason"] = "a reason"
    return create_trial(state=state, values=values, user_attrs=attributes)


BOUND = {"forget_truth_ratio": {"min": 0.5}}


def make(count: int, constraints: Any = None) -> SearchConfig:
    space = {"method.inner_lr": {"low": 0.02, "high": 0.1}, "method.outer_lr": {"low": 1e-4, "high": 1e-3}}
    objectives = dict(list(OBJECTIVES.items())[:count])
    search = {"objectives": objectives, "space": space, "constraints": constraints or {}}
    return validate(SearchConfig, {"search": search})


CONFIGS = {count: make(count) for count in (2, 3)}
BOUNDED = {count: make(count, BOUND) for count in (2, 3)}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(a_trial(), min_size=1, max_size=14),
    st.randoms(use_true_random=False),
    st.sampled_from([2, 3]),
    st.booleans(),
)
def test_the_running_result_equals_the_result_of_all_trials(trials, random, objectives, bounded):
    config, run = (BOUNDED if bounded else CONFIGS)[objectives], RunDirectory(Path("nowhere"))
    for number, trial in enumerate(trials):
        trial.number = number
        if bounded and trial.values is not None:
            trial.set_constraint(
                "forget_truth_ratio:min", 0.5 - trial.user_attrs["metrics"].get("forget_truth_ratio", 1.0)
            )
        if trial.values is not None:
            trial.values = trial.values[:objectives]
    ended = [trial for trial in trials if trial.state.is_finished()]
    running = [trial for trial in trials if not trial.state.is_finished()]
    random.shuffle(ended)
    running_result, models = RunningResult(run, config, ended[: len(ended) // 2]), {trial.number for trial in ended}
    for trial in ended[: len(ended) // 2]:
        models -= {trial.number} - running_result.front
    for place, trial in enumerate(ended[len(ended) // 2 :], start=len(ended) // 2 + 1):
        models -= set(running_result.add(trial))
        known = sorted([*ended[:place], *running], key=lambda trial: trial.number)
        fresh, kept = SearchResult.from_trials(run, config, known), running_result.result(running)
        pd.testing.assert_frame_equal(kept.trials, fresh.trials)
        pd.testing.assert_frame_equal(kept.front, fresh.front)
        assert (kept.hypervolume, kept.hypervolume_reference) == (fresh.hypervolume, fresh.hypervolume_reference)
        assert running_result.front == set(fresh.front["trial"])
        ended_states = fresh.trials.loc[fresh.trials["state"] != "running", "state"]
        assert running_result.counts == ended_states.value_counts().to_dict()
    assert models == running_result.front, "deleting the models of removed trials keeps the models of the front"


def test_an_empty_running_result_has_no_front():
    run, config = RunDirectory(Path("nowhere")), CONFIGS[3]
    fresh, kept = SearchResult.from_trials(run, config, []), RunningResult(run, config).result()
    pd.testing.assert_frame_equal(kept.front, fresh.front)
    assert (kept.hypervolume, kept.hypervolume_reference) == (fresh.hypervolume, fresh.hypervolume_reference)


def test_slow_work_takes_no_more_than_its_share():
    now = [0.0]
    budget, done = TimeBudget(share=0.02, burst=1.0, clock=lambda: now[0]), []
    while now[0] < 1000:
        if budget.is_due():
            budget.spend(0.5)
            done.append(now[0])
        now[0] += 0.1
    assert 0.5 * len(done) <= 0.02 * 1000 + 1.0 + 0.5
    assert max(late - early for early, late in itertools.pairwise(done)) < 26


def test_fast_work_is_done_every_time():
    now = [0.0]
    budget = TimeBudget(share=0.02, burst=1.0, clock=lambda: now[0])
    for _ in range(1000):
        assert budget.is_due()
        budget.spend(0.01)
        now[0] += 1.0


class Killed(BaseException):
    """A killed process."""


def end(search: RaySearch, spec: TrialSpec, name: str, value: float) -> None:
    (spec.trial_dir / "model").mkdir(parents=True)
    metrics = {"ks_statistic": value, "model_utility": 1 - value}
    search.session.searcher.complete(name, TrialOutcome(metrics=metrics))


def test_a_kill_between_an_end_and_its_report_loses_nothing(tmp_path):
    run = RunDirectory.create_new(tmp_path / "run")
    run.mkdir()
    config = validate(SearchConfig, {"search": {"num_trials": 6}})
    killed = RaySearch(run, config, lambda *_: {}, CallbackList())
    killed.session.open()
    specs = {name: killed.session.searcher.next_trial(name) for name in "abc"}
    end(killed, specs["a"], "a", 0.5)

    def die(number: int) -> None:
        raise Killed

    killed.session.searcher._on_finished = die
    with pytest.raises(Killed):
        end(killed, specs["b"], "b", 0.25)
    assert pd.read_csv(run.path / "trials.csv")["state"].tolist() == ["complete", "running", "running"]
    assert (run.trial(0) / "model").is_dir(), "the trial that dominates it was never reported"

    resumed = RaySearch(run, config, lambda *_: {}, CallbackList())
    resumed.session.open()
    resumed.report()
    assert pd.read_csv(run.path / "trials.csv")["state"].tolist() == ["complete", "complete", "running"]
    assert pd.read_csv(run.path / "front.csv")["trial"].tolist() == [1]
    assert json.loads((run.path / "search.json").read_text())["complete"] == 2
    assert [(run.trial(number) / "model").is_dir() for number in range(2)] == [False, True]
    assert resumed.session.searcher.next_trial("x").number == 2


def test_the_mean_of_a_trials_seconds_leaves_out_the_target_and_earlier_searches(tmp_path):
    def ended(role: str, seconds: float | None, state: TrialState = TrialState.FAIL) -> FrozenTrial:
        metrics = {} if seconds is None else {"seconds": seconds}
        return create_trial(state=state, user_attrs={"role": role, "overrides": {}, "metrics": metrics})

    result = RunningResult(RunDirectory(tmp_path / "run"), CONFIGS[2])
    result.add(ended("target", 1.0))
    assert result.mean_seconds is None
    for trial in (ended("published", 30.0), ended("sampled", 10.0), ended("prior", 500.0), ended("sampled", None)):
        result.add(trial)
    assert result.mean_seconds == 20
