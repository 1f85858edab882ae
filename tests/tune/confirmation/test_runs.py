from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from ofmu.config.files import validate
from ofmu.errors import ConfigError, RunError
from tune.compare.directory import CompareDirectory
from tune.config import SearchConfig
from tune.confirmation.runs import plan_runs, read_runs, why_no_point
from tune.execution.trial_records import TrialOutcome
from tune.results.importances import importances, load_trials
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.study.searcher import StudySearcher, open_study

SPACE = {"method.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "method.steps": {"low": 1, "high": 9}}


def searched(folder: Path, outcomes: list[dict[str, float]], **search: object) -> tuple[SearchResult, StudySearcher]:
    """Return a search of npo whose trials have these metrics, without Ray."""
    settings = {"num_trials": len(outcomes), "space": SPACE, "sampler": "random", **search}
    config = validate(SearchConfig, {"method": {"name": "npo"}, "search": settings})
    run = RunDirectory.create_new(folder)
    run.mkdir()
    run.write_config(config)
    source = StudySearcher(open_study(run.study_file, config), config, run.trial)
    for number, metrics in enumerate(outcomes):
        if isinstance(source.suggest(str(number)), dict):
            source.complete(str(number), TrialOutcome(metrics=metrics))
    return SearchResult.load(folder), source


def scores(distance: float, utility: float, evaluations: float = 10) -> dict[str, float]:
    return {"ks_statistic": distance, "model_utility": utility, "gradient_evaluations": evaluations}


OUTCOMES = [
    scores(0.9, 0.8),
    scores(0.95, 0.1),
    scores(0.2, 0.3),
    scores(0.5, 0.6),
    scores(0.7, 0.7),
    scores(0.71, 0.71),
]


def test_the_chosen_points_run_with_their_trials_settings_on_every_seed(tmp_path):
    found, _ = searched(tmp_path / "searches" / "npo", OUTCOMES)
    trials = load_trials(tmp_path / "searches" / "npo" / "study.log")
    home = CompareDirectory(tmp_path)
    runs = plan_runs(found, trials, (1, 2), 3, partial(home.run, "npo"))
    points = sorted({run.trial for run in runs})
    assert points in ([2, 3, 4], [2, 3, 5])
    assert [run.seed for run in runs] == [1, 2] * 3
    for run in runs:
        assert run.settings == {**trials[run.trial].user_attrs["overrides"], "method.seed": run.seed}
        assert run.directory == tmp_path / "runs" / "npo" / f"{run.trial:05d}-seed{run.seed}"
        assert not run.is_done
    # The untouched target is on the front, and is not run again.
    assert 0 in found.front["trial"].tolist()
    assert {run.trial for run in plan_runs(found, trials, (1,), 99, partial(home.run, "npo"))} == {2, 3, 4, 5}


def test_a_search_without_any_point_gives_no_runs(tmp_path):
    found, _ = searched(tmp_path / "npo", [scores(0.9, 0.8), scores(0.95, 0.1)])
    assert (
        plan_runs(found, load_trials(tmp_path / "npo" / "study.log"), (1,), 3, RunDirectory(tmp_path).confirmation_run)
        == []
    )


TARGET_UTILITY = {"model_utility": {"min": 0.75}}


@pytest.mark.parametrize(
    ("outcomes", "constraints", "reason"),
    [
        ([scores(0.9, 0.8), scores(0.95, 0.1)], {}, "no trial forgets more than the target"),
        ([scores(0.9, 0.8)], {}, "no trial but the untouched target is complete"),
        (
            [scores(0.9, 0.8), scores(0.2, 0.1)],
            TARGET_UTILITY,
            "no trial but the untouched target keeps the constraints (model_utility ≥ 0.75)",
        ),
        (
            [scores(0.9, 0.8), scores(0.2, 0.1)],
            {"ks_statistic": {"max": 0.1}},
            "no trial keeps the constraints (ks_statistic ≤ 0.1)",
        ),
        (
            [scores(0.9, 0.8), scores(0.2, 0.1), scores(0.91, 0.78)],
            TARGET_UTILITY,
            "no trial that keeps the constraints (model_utility ≥ 0.75) forgets more than the target",
        ),
    ],
)
def test_a_search_without_any_point_has_a_reason(tmp_path, outcomes, constraints, reason):
    found, _ = searched(tmp_path / "npo", outcomes, constraints=constraints)
    trials = load_trials(tmp_path / "npo" / "study.log")
    assert plan_runs(found, trials, (1,), 3, RunDirectory(tmp_path).confirmation_run) == []
    assert why_no_point(found) == reason


def test_failed_runs_are_read_with_their_reason(tmp_path):
    found, _ = searched(tmp_path / "npo", OUTCOMES)
    trials = load_trials(tmp_path / "npo" / "study.log")
    runs = plan_runs(found, trials, (1, 2, 3), 1, RunDirectory(tmp_path).confirmation_run)
    contents = [
        ("metrics.json", {"metrics": {**scores(0.4, 0.5), "tokens": 3.0}}),
        ("failed.json", {"reason": "out of memory"}),
        ("metrics.json", {"metrics": {"ks_statistic": None, "model_utility": 0.5}}),
    ]
    for run, (name, content) in zip(runs, contents, strict=True):
        run.directory.mkdir(parents=True)
        (run.directory / name).write_text(json.dumps(content))
        assert run.is_done
    (point,) = read_runs(runs, found.config.objectives, tmp_path)
    assert point.runs[0].metrics == scores(0.4, 0.5)
    assert point.runs[0].directory == runs[0].directory.relative_to(tmp_path).as_posix()
    assert (point.runs[1].metrics, point.runs[1].reason) == (None, "out of memory")
    assert (point.runs[2].metrics, point.runs[2].reason) == (None, "the run reported no ks_statistic")
    assert set(point.settings) == {"method.lr", "method.steps"}


def test_a_search_ends_once_its_gradient_evaluations_are_spent(tmp_path):
    found, source = searched(tmp_path / "npo", OUTCOMES, max_gradient_evaluations=25, num_trials=50)
    assert len(found.trials) == 3
    assert source.spent() == 30
    assert source.budget_reached()
    assert source.expected_total() == 3


def test_a_bounded_search_estimates_its_trials_from_their_costs(tmp_path):
    _, source = searched(tmp_path / "npo", OUTCOMES[:2], max_gradient_evaluations=101, num_trials=50)
    assert source.expected_total() == 11
    assert not source.budget_reached()
    assert isinstance(source.suggest("a"), dict)
    _, unbounded = searched(tmp_path / "other", OUTCOMES[:2], num_trials=50)
    assert unbounded.expected_total() == 50


@pytest.mark.slow
def test_importances_name_the_setting_that_decides(tmp_path):
    found, source = searched(tmp_path / "npo", [scores(0.9, 0.8)] * 2, num_trials=42)
    for index in range(40):
        steps = source.suggest(f"x{index}")["run"]["method"]["steps"]
        metrics = scores(1 - steps / 10, 0.1 + steps / 20)
        source.complete(f"x{index}", TrialOutcome(metrics=metrics))
    trials = load_trials(tmp_path / "npo" / "study.log")
    shares = importances(trials, list(found.config.objectives.values()))
    assert list(shares) == ["method.steps", "method.lr"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["method.steps"] > 0.8
    assert importances(trials[:5], ["min", "max"]) == {}


def test_a_directory_that_is_no_comparison_and_changes_of_one_are_refused(tmp_path):
    home = CompareDirectory.create_new(tmp_path / "run")
    with pytest.raises(RunError, match="no run directory"):
        CompareDirectory.open_existing(tmp_path / "run")
    home.mkdir()
    with pytest.raises(RunError, match="not the directory of a comparison"):
        CompareDirectory.open_existing(tmp_path / "run")
    home.write_mapping({"compare": {"methods": ["ofmu", "npo"]}}, replace_environment=False)
    assert CompareDirectory.open_existing(home.path).read_mapping(["compare.seeds=5"])["compare"]["seeds"] == 5
    for entry in ("compare.points=2", "method.batch_size=3", "search.num_trials=9"):
        with pytest.raises(ConfigError, match=entry.partition("=")[0]):
            home.read_mapping([entry])
    with pytest.raises(RunError, match="--resume"):
        CompareDirectory.create_new(home.path)
    with home.lock(), pytest.raises(RunError, match="Another comparison is running"), home.lock():
        pass


def test_named_trials_run_in_place_of_the_best_points(tmp_path):
    found, _ = searched(tmp_path / "npo", OUTCOMES)
    trials = load_trials(tmp_path / "npo" / "study.log")
    place = RunDirectory(tmp_path).confirmation_run
    runs = plan_runs(found, trials, (1, 2), 1, place, chosen=[5, 1])
    assert [(run.trial, run.seed) for run in runs] == [(1, 1), (1, 2), (5, 1), (5, 2)]
    assert runs[0].settings == {**trials[1].user_attrs["overrides"], "method.seed": 1}
    with pytest.raises(ConfigError, match=r"search\.confirm_trials names 9, which is no complete trial"):
        plan_runs(found, trials, (1,), 1, place, chosen=[5, 9])
