"""Points of a search whose trials stand for a round of their runs: in tables, names, picks and further runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from ofmu.config.files import validate
from ofmu.errors import RunError
from tune.compare.directory import CompareDirectory
from tune.config import SearchConfig
from tune.confirmation.runs import plan_runs
from tune.execution.trial_records import TrialOutcome, TrialSpec
from tune.results.importances import load_trials
from tune.results.page import search_page
from tune.results.report import format_front
from tune.results.result import SearchResult
from tune.results.tables import split_round
from tune.rundir.search_dir import RunDirectory
from tune.study.searcher import StudySearcher, open_study

SPACE = {"method.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "method.steps": {"low": 1, "high": 9}}
OUTCOMES = [
    {"ks_statistic": 0.9, "model_utility": 0.8},
    {"ks_statistic": 0.95, "model_utility": 0.1},
    {"ks_statistic": 0.2, "model_utility": 0.3, "selected_round": 24.0},
    {"ks_statistic": 0.5, "model_utility": 0.6, "selected_round": 3.0},
]


@pytest.fixture
def result(tmp_path: Path) -> SearchResult:
    search = {"num_trials": 4, "space": SPACE, "sampler": "random", "checkpoint_selection": {"enabled": True}}
    config = validate(SearchConfig, {"method": {"name": "npo"}, "search": search})
    run = RunDirectory.create_new(tmp_path / "run")
    run.mkdir()
    run.write_config(config)
    source = StudySearcher(open_study(run.study_file, config), config, run.trial)
    for number, metrics in enumerate(OUTCOMES):
        source.suggest(str(number))
        source.complete(str(number), TrialOutcome(metrics=metrics | {"gradient_evaluations": 10.0}))
    return SearchResult.load(tmp_path / "run")


@pytest.mark.slow
def test_tables_and_pages_name_the_round(result):
    assert result.front.set_index("trial")["selected_round"].dropna().to_dict() == {2: 24, 3: 3}
    assert [row[0] for row in format_front(result)][1:4] == ["2, round 24", "3, round 3", "0"]
    assert result.pick(2).name == "trial 2, round 24"
    assert result.pick(0).name == "trial 0"
    page = search_page(result)
    assert "The chosen point is trial 3, round 3, the knee of the front" in page
    assert "trial 2, round 24, sampled" in page


@pytest.mark.parametrize("choice", [2, "2", "02", "2, round 24", "trial 2, round 24", "2:24"])
def test_a_point_is_picked_by_its_trial_or_by_trial_and_round(result, choice):
    assert result.pick(choice).number == 2
    assert str(choice) == "02" or result.trial(choice).number == 2


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("2:23", "Trial 2 stands for round 24, and no other round was kept: pick 2"),
        ("0, round 1", "Trial 0 stands for the end of its run, and no other round was kept: pick 0"),
        ("7:1", "is no (complete )?trial of"),
        ("2:", "is no (complete )?trial of"),
    ],
)
def test_another_round_than_the_kept_one_is_refused(result, choice, words):
    for pick in (result.pick, result.trial):
        with pytest.raises(RunError, match=words):
            pick(choice)


def test_a_run_on_a_further_seed_ends_at_the_round(result, tmp_path):
    trials = load_trials(tmp_path / "run" / "study.log")
    runs = plan_runs(result, trials, (1, 2), 5, partial(CompareDirectory(tmp_path).run, "npo"), chosen=[1, 2])
    assert [(run.trial, run.last_round) for run in runs] == [(1, None), (1, None), (2, 24), (2, 24)]
    spec = TrialSpec(number=2, trial_dir=tmp_path, run=result.config.unlearn, last_round=24)
    assert TrialSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("text", ["knee", "17", "17:", "17,round", "17:2x", "-1:2", "17:12345678901"])
def test_other_names_are_left_as_they_are(text):
    assert split_round(text) == (text, None)
