from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ofmu.errors import ConfigError, RunError
from tune import AskTell
from tune.erasure.pick import candidates, confirmed, further_metrics, rule_of
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.rundir.seed_runs import Confirmation, PointRuns, SeedRun

POINTS = [(0.9, 0.80), (0.3, 0.2), (0.2, 0.73), (0.4, 0.79), (0.1, 0.5), (0.5, 0.70), (0.6, 0.795), (0.95, 0.9)]
"""KS distance and utility of each trial. Trial 0 is the target. Trials 1 and 5 are not on the front."""


def search(folder: Path, points: list[tuple[float, float]] = POINTS, **settings: Any) -> SearchResult:
    """Return a search whose trials have these objectives, without Ray."""
    names = list(settings.get("objectives", ("ks_statistic", "model_utility")))
    with AskTell(
        {"method": {"name": "npo"}, "search": {"num_trials": len(points), **settings}}, run_dir=folder
    ) as loop:
        for point in points:
            trial = loop.ask()
            assert trial is not None
            loop.tell(trial, {**dict(zip(names, point, strict=True)), "gradient_evaluations": 3.0, "seconds": 1.0})
        return loop.result()


def write_runs(result: SearchResult, runs: dict[int, list[tuple[float, float] | None]]) -> SearchResult:
    """Write runs on further seeds, of which some failed."""
    points = []
    for trial, values in runs.items():
        seeds = []
        for seed, value in enumerate(values, start=1):
            place = f"confirmation/{trial:05d}-seed{seed}"
            metrics = None if value is None else dict(zip(("ks_statistic", "model_utility"), value, strict=True))
            if metrics is not None:
                (result.run_dir / place).mkdir(parents=True)
                everything = {"metrics": {**metrics, "forget_rouge": 0.1 * seed}, "reasons": {}}
                (result.run_dir / place / "metrics.json").write_text(json.dumps(everything))
            seeds.append(SeedRun(seed=seed, directory=place, metrics=metrics, reason=None if metrics else "NaN"))
        points.append(PointRuns(trial=trial, settings={}, runs=tuple(seeds)))
    RunDirectory(result.run_dir).write_confirmation(Confirmation(seeds=(1, 2), points=tuple(points)))
    return SearchResult.load(result.run_dir)


@pytest.mark.slow
def test_candidates_are_trials_of_the_front_with_enough_utility(tmp_path: Path):
    result = search(tmp_path / "s")
    rule = rule_of(result, 0.9)
    assert (rule.target_forgetting, rule.target_utility) == (0.9, 0.8)
    # 0.9 of 0.8 is 0.72. Trial 7 forgets less than the target, and trial 4 keeps too little.
    assert [each.trial for each in candidates(result, rule)] == [2, 3, 6]
    assert [each.trial for each in candidates(result, rule, count=1)] == [2]
    assert [each.trial for each in candidates(result, rule_of(result, 0.5))] == [4, 2, 3]
    assert [each.trial for each in candidates(result, rule_of(result, 0.99))] == [6]


@pytest.mark.slow
def test_the_mean_over_further_seeds_decides(tmp_path: Path):
    result = search(tmp_path / "s")
    rule = rule_of(result, 0.9)
    found = candidates(result, rule)
    assert confirmed(result, found, rule) == found
    runs: dict[int, list[tuple[float, float] | None]] = {
        2: [(0.2, 0.72), (0.2, 0.70)],  # too little utility on the mean
        3: [(0.5, 0.79), None],
        6: [(0.4, 0.73), (0.5, 0.75)],
    }
    again = write_runs(result, runs)
    ordered = confirmed(again, found, rule)
    assert [(each.trial, each.runs) for each in ordered] == [(6, 2), (3, 1), (2, 2)]
    assert ordered[0].forgetting == pytest.approx(0.45)
    assert [metrics["forget_rouge"] for metrics in further_metrics(again, ordered[1])] == [0.1]
    assert further_metrics(again, found[0]) == []


@pytest.mark.slow
def test_nothing_is_chosen_if_nothing_keeps_enough(tmp_path: Path):
    result = search(tmp_path / "s", [(0.9, 0.8), (0.1, 0.3), (0.2, 0.4)])
    with pytest.raises(
        RunError,
        match=r"of at least 0\.72 \(90% of the target's 0\.8\); the trials that forget more reach at most 0\.4:",
    ):
        candidates(result, rule_of(result, 0.9))
    found = candidates(result, rule_of(result, 0.4))
    lost = write_runs(result, {2: [(0.2, 0.1), (0.2, 0.1)]})
    with pytest.raises(RunError, match="On further seeds, no trial"):
        confirmed(lost, found, rule_of(lost, 0.4))


@pytest.mark.slow
def test_trials_that_forget_no_more_are_not_called_incomplete(tmp_path: Path):
    # Both are dominated by the target, so the front holds the target alone.
    result = search(tmp_path / "s", [(0.2, 0.8), (0.3, 0.5), (0.25, 0.7)])
    with pytest.raises(RunError, match="; none forgets more: give more --trials or --budget, and run") as raised:
        candidates(result, rule_of(result, 0.9))
    assert "--min-utility" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probability", "sentence"),
    [
        (
            0.2,
            "although forget_probability fell, so it is too coarse for these rows: make forget_probability the first",
        ),
        (0.9, "the extraction_strength of every trial is the target's 0.5: give more --trials"),
    ],
)
def test_an_objective_that_no_trial_moved_is_named(tmp_path: Path, probability: float, sentence: str):
    objectives = {"extraction_strength": "min", "model_utility": "max"}
    values = {"extraction_strength": 0.5, "gradient_evaluations": 3.0, "seconds": 1.0}
    mapping = {"method": {"name": "npo"}, "search": {"num_trials": 2, "objectives": objectives}}
    with AskTell(mapping, run_dir=tmp_path / "s") as loop:
        for utility, likely in ((0.8, 0.9), (0.7, probability)):
            trial = loop.ask()
            assert trial is not None
            loop.tell(trial, {**values, "model_utility": utility, "forget_probability": likely})
        result = loop.result()
    with pytest.raises(RunError) as raised:
        candidates(result, rule_of(result, 0.9))
    assert sentence in str(raised.value)
    assert "none is complete" not in str(raised.value)


@pytest.mark.slow
def test_all_runs_on_further_seeds_may_fail(tmp_path: Path):
    result = search(tmp_path / "s")
    rule = rule_of(result, 0.9)
    lost = write_runs(result, {2: [None, None]})
    with pytest.raises(RunError, match="none is complete"):
        confirmed(lost, candidates(result, rule, count=1), rule)


@pytest.mark.slow
def test_the_second_objective_is_a_utility(tmp_path: Path):
    objectives = {"ks_statistic": "min", "extraction_strength": "min"}
    result = search(tmp_path / "s", [(0.9, 0.8), (0.1, 0.3)], objectives=objectives)
    with pytest.raises(ConfigError, match="'extraction_strength' is minimised: name a utility second"):
        rule_of(result, 0.9)


@pytest.mark.slow
def test_in_a_chain_utility_is_compared_with_the_first_target(tmp_path: Path):
    result = search(tmp_path / "s")
    rule = rule_of(result, 0.9, {"metrics": {"model_utility": 0.9, "ks_statistic": 0.1}, "reasons": {}})
    # 0.9 of 0.9 is 0.81, which no trial keeps. The target of the search has 0.80, and 0.72 would be enough.
    assert rule.min_utility == pytest.approx(0.81)
    assert rule.target_forgetting == 0.9
    assert "at least 0.81 (90% of the first target's 0.9)" in rule.sentence
    with pytest.raises(
        RunError, match=r"No trial of .* a model_utility of at least 0\.81 \(90% of the first target's 0\.9\)"
    ):
        candidates(result, rule)
    with pytest.raises(ConfigError, match=r"The first target has no model_utility \(no retain rows\)"):
        rule_of(result, 0.9, {"metrics": {"model_utility": None}, "reasons": {"model_utility": "no retain rows"}})
