"""A search of real runs whose trials are stopped at rungs, in Ray Tune actors."""

from __future__ import annotations

import json
from typing import Any

import optuna
import pytest
import ray

from cluster.config import ClusterConfig
from cluster.train.trainer import run_trial
from ofmu.errors import PrunedError
from ofmu.preparer import prepare
from ofmu.run_files import RunFiles
from tune import ParetoSearch, SearchResult
from tune.callbacks.base import Progress, SearchCallback
from tune.early_stopping.callback import EarlyStopping
from tune.early_stopping.config import EarlyStoppingConfig
from tune.early_stopping.rungs import RungScheduler
from tune.early_stopping.service import SchedulerClient, start_scheduler_actor
from tune.study.storage import read_study

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

RUNGS = {"enabled": True, "rung_size": 2, "grace_rounds": 1, "first_rung": 0.25, "rows": 4}
CHECKS = 4 + 12
"""Gradient evaluations of the checks of the differences, at the first inner and at the first outer step."""
SEARCH = {
    "num_trials": 9,
    "sampler": "random",
    "max_concurrent_trials": 2,
    "early_stopping": RUNGS,
    "space": {"method.inner_lr": {"low": 1e-3, "high": 0.1, "log": True}, "method.outer_steps": 4},
}


class Recorder(SearchCallback):
    def __init__(self) -> None:
        self.seen: list[Progress] = []

    def on_progress(self, progress: Progress) -> None:
        self.seen.append(progress)


@pytest.fixture(scope="module")
def found(
    two_cpus: None, tmp_path_factory: pytest.TempPathFactory, tiny_mapping: dict[str, Any]
) -> tuple[SearchResult, Recorder]:
    recorder = Recorder()
    settings = {**tiny_mapping, "method": {**tiny_mapping["method"], "inner_steps": 1}, "search": SEARCH}
    search = ParetoSearch(settings, run_dir=tmp_path_factory.mktemp("rungs") / "run", callbacks=[recorder])
    return search.run(), recorder


def stored_trials(result: SearchResult) -> list[optuna.trial.FrozenTrial]:
    study = read_study(result.run_dir / "study.log")
    return study.trials


def reports(result: SearchResult) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (result.run_dir / "rungs.jsonl").read_text().splitlines()]


def test_every_trial_ends_complete_or_pruned(found):
    result, recorder = found
    states = [trial.state.name for trial in stored_trials(result)]
    assert len(states) == 9
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert states[:2] == ["COMPLETE", "COMPLETE"], "the target and the published settings run to their end"
    assert result.trials["state"].tolist() == [state.lower() for state in states]
    assert recorder.seen[-1].pruned == states.count("PRUNED")
    assert recorder.seen[-1].done == 9


def test_the_front_holds_complete_trials_alone(found):
    result, _ = found
    complete = set(result.trials.loc[result.trials["state"] == "complete", "trial"])
    assert set(result.front["trial"]) <= complete
    assert {int(path.parent.name) for path in result.run_dir.glob("trials/*/model")} == set(result.front["trial"])


def test_those_are_pruned_whom_the_scheduler_stops(found):
    result, _ = found
    scheduler = RungScheduler(result.config.objectives, EarlyStoppingConfig(**RUNGS))
    stopped = {}
    for line in reports(result):
        if scheduler.report(line["trial"], line["round"], line["values"], line["total"]) == "stop":
            stopped[line["trial"]] = line
    pruned = [trial for trial in stored_trials(result) if trial.state.name == "PRUNED"]
    assert {trial.number for trial in pruned} == set(stopped)
    for trial in pruned:
        line = stopped[trial.number]
        assert trial.user_attrs["round"] == line["round"]
        assert trial.user_attrs["objectives"] == line["values"]
        assert trial.user_attrs["rung"] == line["round"] / line["total"]


def test_trials_report_at_their_rungs_alone_and_once(found):
    result, _ = found
    reported = [(line["trial"], line["round"]) for line in reports(result)]
    assert len(reported) == len(set(reported))
    sampled = set(result.trials.loc[result.trials["role"] == "sampled", "trial"])
    assert {trial for trial, _ in reported} == sampled
    assert {round for _, round in reported} == {1, 2}
    assert all(None not in line["values"].values() for line in reports(result))


def test_a_pruned_trial_costs_only_what_it_ran(found):
    result, _ = found
    trials = result.trials[result.trials["role"] == "sampled"]
    per_round = (trials.loc[trials["state"] == "complete", "gradient_evaluations"].iloc[0] - CHECKS) / 4
    pruned = trials[trials["state"] == "pruned"]
    assert pruned["gradient_evaluations"].tolist() == (pruned["outer_steps_taken"] * per_round + CHECKS).tolist()
    assert (pruned["outer_steps_taken"] <= 2).all()
    assert pruned["reason"].str.startswith("stopped early, after round").all()


def test_a_prolonged_search_goes_on_with_the_rungs_it_had(found):
    result, _ = found
    before = reports(result)
    longer = ParetoSearch.resume(result.run_dir, ["search.num_trials=11"])
    assert longer.trials["state"].isin(["complete", "pruned"]).sum() == 11
    after = reports(longer)
    assert after[: len(before)] == before
    assert {line["trial"] for line in after[len(before) :]} == {9, 10}


def test_a_group_of_workers_asks_once_and_ends_as_one(found, tiny_config, tmp_path):
    result, _ = found
    settings, ways = EarlyStoppingConfig(**RUNGS), result.config.objectives
    actor = start_scheduler_actor(tmp_path / "rungs.jsonl", ways, settings)
    best = {"ks_statistic": 0.0, "model_utility": 1.0}
    assert [ray.get(actor.should_stop.remote(trial, 1, 3, best)) for trial in (0, 1)] == [False, False]
    prepared = prepare(tiny_config)
    records = []
    for number, workers in ((2, 0), (3, 2)):
        callback = EarlyStopping(settings, tuple(ways), SchedulerClient(actor)).callback_for(number)
        with pytest.raises(PrunedError) as caught:
            run_trial(
                tiny_config,
                ClusterConfig(num_workers=workers),
                tmp_path / str(number),
                prepared,
                round_callback=callback,
            )
        records.append(caught.value.record)
        assert RunFiles(tmp_path / str(number)).read_pruning_record() == records[-1]
    ray.kill(actor)
    alone, group = records
    assert alone.round == group.round == 1
    assert group.objectives == pytest.approx(alone.objectives, rel=1e-4)
    assert group.metrics["gradient_evaluations"] == alone.metrics["gradient_evaluations"]
    reported = [json.loads(line)["trial"] for line in (tmp_path / "rungs.jsonl").read_text().splitlines()]
    assert reported == [0, 1, 2, 3]
