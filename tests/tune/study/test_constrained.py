"""Violations are stored with each trial, and samplers, fronts, resumes and warm starts use them."""

from __future__ import annotations

import csv
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from ofmu.config.files import validate
from ofmu.errors import ConfigError, RunError
from tune import AskTell
from tune.config import SearchConfig
from tune.results.report import format_front
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.study.history_limit import select_best
from tune.study.storage import read_study

SPACE = {"method.inner_lr": {"low": 1e-6, "high": 1.0}, "method.outer_lr": {"low": 1e-6, "high": 1.0}}


def make(constraints: Any, **search: Any) -> dict[str, Any]:
    return {"search": {"num_trials": 8, "space": SPACE, "constraints": constraints, **search}, "seed": 3}


def scores(settings: dict[str, Any]) -> dict[str, float]:
    """Forgetting costs utility, and only a low outer rate stays close to the target."""
    inner, outer = settings.get("method.inner_lr", 0.0), settings.get("method.outer_lr", 0.0)
    return {
        "ks_statistic": 1 - inner,
        "model_utility": 0.8 - 0.5 * inner**2,
        "kl_retain": outer * inner,
        "seconds": 1.0,
    }


def run(loop: AskTell) -> SearchResult:
    while (trial := loop.ask()) is not None:
        loop.tell(trial, scores(trial.settings if trial.role == "sampled" else {}))
    return loop.result()


CONSTRAINTS = {"model_utility": {"min": "0.9 of target"}, "kl_retain": {"max": 0.2}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler", ["tpe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nsga2", "gp", "random"))]
)
def test_every_trial_stores_its_violations_and_the_front_keeps_the_bounds(tmp_path: Path, sampler: str) -> None:
    with AskTell(make(CONSTRAINTS, sampler=sampler, num_trials=16), run_dir=tmp_path / "run") as loop:
        result = run(loop)
    limits = {limit.key: limit for limit in result.limits}
    assert limits["model_utility:min"].value == pytest.approx(0.72)
    trials = read_study(RunDirectory(tmp_path / "run").study_file).trials
    assert sum(trial.state is TrialState.COMPLETE for trial in trials) == 16
    for trial in trials:
        wanted = {key: limit.violation(trial.user_attrs["metrics"][limit.metric]) for key, limit in limits.items()}
        assert trial.constraints == pytest.approx(wanted)
    kept = result.trials[(result.trials["model_utility"] >= 0.72) & (result.trials["kl_retain"] <= 0.2)]
    assert 0 < len(kept) < 16
    points = kept[["ks_statistic", "model_utility"]].to_numpy() * [1, -1]
    best = [not ((points <= point).all(1) & (points < point).any(1)).any() for point in points]
    assert set(result.front["trial"]) == set(kept["trial"][best])
    assert result.pick("knee").number in set(kept["trial"])
    loaded = SearchResult.load(tmp_path / "run")
    assert (loaded.front.equals(result.front), loaded.limits) == (True, result.limits)


@pytest.mark.slow
def test_tables_and_files_say_which_points_are_feasible(tmp_path: Path) -> None:
    with AskTell(make(CONSTRAINTS), run_dir=tmp_path / "run") as loop:
        result = run(loop)
    header, *rows = format_front(result)
    assert header[:6] == ["trial", "role", "ks_statistic", "model_utility", "kl_retain ≤ 0.2", "feasible"]
    assert {row[5] for row in rows} == {"yes"}
    with (tmp_path / "run" / "trials.csv").open() as file:
        for row in csv.DictReader(file):
            broken = float(row["model_utility"]) < 0.72 or float(row["kl_retain"]) > 0.2
            assert (float(row["violation"]) > 0) == broken
    summary = json.loads((tmp_path / "run" / "search.json").read_text())
    assert summary["feasible"] == int((result.trials["violation"] == 0).sum())
    assert summary["limits"] == ["model_utility ≥ 0.72", "kl_retain ≤ 0.2"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Trials that keep all constraints" in page
    assert "violates a constraint" in page


@pytest.mark.slow
def test_without_a_feasible_trial_the_nearest_is_named_and_the_knee_is_not_exported(tmp_path: Path) -> None:
    with AskTell(make({"model_utility": {"min": 0.95}}, num_trials=6), run_dir=tmp_path / "run") as loop:
        result = run(loop)
    least = result.trials["model_utility"].max()
    nearest = result.trials.loc[result.trials["model_utility"] == least, "trial"].tolist()
    assert (result.hypervolume, result.has_feasible) == (0.0, False)
    assert set(result.front["trial"]) <= set(nearest)
    assert result.nearest_sentence.startswith(f"No trial keeps all constraints; the nearest is trial {nearest[-1]}: ")
    with pytest.raises(RunError, match=f"nearest is trial {nearest[-1]}: model_utility 0.8, not ≥ 0.95: pick"):
        result.pick("knee")
    with pytest.warns(UserWarning, match="does not keep all constraints: model_utility 0.8, not ≥ 0.95"):
        result.pick(nearest[-1])
    summary = json.loads((tmp_path / "run" / "search.json").read_text())
    assert (summary["knee"], summary["nearest"], summary["feasible"]) == (None, nearest[-1], 0)
    assert "no: model_utility" in {row[4] for row in format_front(result)}


def test_a_share_of_the_target_waits_for_the_target(tmp_path: Path) -> None:
    with AskTell(make(CONSTRAINTS), run_dir=tmp_path / "run") as loop:
        target = loop.ask()
        assert target is not None
        with pytest.raises(RunError, match="Tell trial 0, the untouched target, before you ask"):
            loop.ask()
        assert loop.tell(target, scores({})).is_feasible
        assert None not in (loop.ask(), loop.ask())
    with AskTell(make({"kl_retain": {"max": 0.2}}), run_dir=tmp_path / "numbers") as loop:
        assert None not in (loop.ask(), loop.ask()), "a number waits for nothing"


def test_a_target_that_fails_or_has_no_utility_ends_the_search_in_one_sentence(tmp_path: Path) -> None:
    with AskTell(make(CONSTRAINTS), run_dir=tmp_path / "failed") as loop:
        loop.ask()
        loop.fail(0, "no memory")
        with pytest.raises(ConfigError, match=r"model_utility is a share .* trial failed \(no memory\): give a number"):
            loop.ask()
    with AskTell(make(CONSTRAINTS), run_dir=tmp_path / "zero") as loop:
        loop.ask()
        with pytest.raises(ConfigError, match="a share of the target's value, which is 0: give a number"):
            loop.tell(0, scores({}) | {"model_utility": 0.0})


def test_a_trial_without_a_constrained_metric_fails_with_the_reason(tmp_path: Path) -> None:
    with AskTell(make({"kl_retain": {"max": 0.2}}), run_dir=tmp_path / "run") as loop:
        loop.ask()
        told = loop.tell(0, {"ks_statistic": 0.5, "model_utility": 0.5})
    assert (told.state, told.reason, told.is_feasible) == ("failed", "the run reported no kl_retain", False)


@pytest.mark.slow
def test_a_resume_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    with AskTell(make(CONSTRAINTS), run_dir=tmp_path / "whole") as loop:
        whole = run(loop)
    with AskTell(make(CONSTRAINTS), run_dir=tmp_path / "parts") as loop:
        for _ in range(5):
            trial = loop.ask()
            assert trial is not None
            loop.tell(trial, scores(trial.settings if trial.role == "sampled" else {}))
    with AskTell.resume(tmp_path / "parts") as loop:
        parts = run(loop)
    assert parts.trials.equals(whole.trials)
    edited = tmp_path / "parts" / "config.yaml"
    edited.write_text(edited.read_text().replace("0.9 of target", "0.5 of target"))
    with pytest.raises(RunError, match=r"search\.constraints changed after the start"):
        SearchResult.load(tmp_path / "parts")


@pytest.mark.slow
def test_a_warm_start_brings_the_violations_of_the_new_bounds(tmp_path: Path) -> None:
    with AskTell(make({}, objectives={"ks_statistic": "min", "model_utility": "max"}), run_dir=tmp_path / "a") as loop:
        run(loop)
    bound = {"model_utility": {"min": 0.7}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with AskTell(make(bound), run_dir=tmp_path / "b", warm_start=tmp_path / "a") as loop:
            loop.ask()
    prior = [trial for trial in read_study(tmp_path / "b" / "study.log").trials if trial.user_attrs["role"] == "prior"]
    assert len(prior) == 6
    for trial in prior:
        assert (trial.constraints["model_utility:min"] <= 0) == (trial.user_attrs["metrics"]["model_utility"] >= 0.7)
    with pytest.raises(ConfigError, match=r"search\.warm_start needs it earlier: give a number"):
        AskTell(make(CONSTRAINTS), run_dir=tmp_path / "c", warm_start=tmp_path / "a")
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_a_damaged_violation_is_named(tmp_path: Path) -> None:
    with AskTell(make({"kl_retain": {"max": 0.2}}), run_dir=tmp_path / "run") as loop:
        run(loop)
    study = tmp_path / "run" / "study.log"
    study.write_text(re.sub(r'("constraints:kl_retain:max":)[-0-9.e]+', r'\1"x"', study.read_text(), count=1))
    with pytest.raises(RunError, match="trial 0 has a damaged violation"):
        SearchResult.load(tmp_path / "run")


@pytest.mark.slow
def test_the_sampler_finds_the_feasible_corner_that_it_misses_without_constraints(tmp_path: Path) -> None:
    """With a divergence that no objective shows, only the constraint tells which trials are of use."""
    found = {}
    for name, constraints in {"free": {}, "bound": {"kl_retain": {"max": 0.02}}}.items():
        config = make(constraints, num_trials=48, objectives={"ks_statistic": "min", "model_utility": "max"})
        with AskTell(config, run_dir=tmp_path / name) as loop:
            trials = run(loop).trials
        found[name] = int((trials["kl_retain"][24:] <= 0.02).sum())
    assert found["bound"] > 2 * found["free"]


def test_a_long_history_shows_the_sampler_feasible_trials_first() -> None:
    draw = np.random.default_rng(0)
    costs, violations = draw.random((300, 2)), np.where(draw.random(300) < 0.9, draw.random(300), 0.0)
    feasible = np.flatnonzero(violations == 0)
    chosen = select_best(costs, 64, violations)
    assert set(feasible) <= set(chosen)
    rest = violations[[index for index in chosen if index not in feasible]]
    assert len(chosen) == 64
    assert rest.max() <= np.sort(violations[violations > 0])[64 - len(feasible) - 1]
    assert select_best(costs, 64, np.zeros(300)).tolist() == select_best(costs, 64).tolist()


@pytest.mark.slow
def test_an_old_study_without_constraints_is_read_as_one_without(tmp_path: Path) -> None:
    config = validate(SearchConfig, make({}))
    assert config.search.constraints == {}
    with AskTell(make({}), run_dir=tmp_path / "run") as loop:
        result = run(loop)
    assert "violation" not in result.trials
    assert (result.limits, result.has_feasible) == ((), True)
    assert "feasible" not in json.loads((tmp_path / "run" / "search.json").read_text())
