"""Warm starts from the same task and from another task, on objectives in closed form."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml

from ofmu.errors import ConfigError, RunError
from tune import AskTell, ParetoSearch, SearchResult
from tune.ask_tell import AskedTrial
from tune.pareto import as_costs, hypervolume
from tune.study.storage import read_study

SPACE: dict[str, Any] = {
    "method.inner_lr": {"low": 1e-4, "high": 1.0, "log": True},
    "method.outer_lr": {"low": 1e-6, "high": 1e-1, "log": True},
    "method.penalty_weight": {"low": 1e-4, "high": 1e2, "log": True},
    "method.similarity_threshold": {"low": -0.5, "high": 0.5},
}
BEST = {"inner_lr": 0.03, "outer_lr": 3e-5, "penalty_weight": 10.0}


def config(num_trials: int, seed: int = 0, space: dict[str, Any] = SPACE, **sections: Any) -> dict[str, Any]:
    method = {"inner_lr": 0.05, "outer_lr": 1e-3, **sections.pop("method", {})}
    return {"search": {"space": space, "num_trials": num_trials}, "seed": seed, "method": method, **sections}


def score(trial: AskedTrial) -> dict[str, float]:
    """A front along the threshold. Every other setting costs its distance from the best value, in decades."""
    method = trial.config.method.model_dump()
    away = math.sqrt(sum(math.log10(method[name] / best) ** 2 for name, best in BEST.items())) / 10
    share = method["similarity_threshold"] + 0.5
    return {"ks_statistic": min(1.0, share**2 + away), "model_utility": max(0.0, 1 - (1 - share) ** 2 - away)}


def run_all(search: AskTell) -> list[AskedTrial]:
    trials = []
    with search:
        while (trial := search.ask()) is not None:
            search.tell(trial, score(trial))
            trials.append(trial)
    return trials


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("earlier") / "run"
    run_all(AskTell(config(20), run_dir=run_dir))
    return run_dir


def study_of(run_dir: Path) -> optuna.Study:
    return read_study(run_dir / "study.log")


def own_volume(trials: list[AskedTrial]) -> float:
    """Return the hypervolume of the trials that the search itself drew, without the baselines."""
    values = [list(score(trial).values()) for trial in trials if trial.role == "sampled"]
    return hypervolume(as_costs(values, ["min", "max"]), np.array([1.0, 0.0]))


@pytest.mark.slow
def test_a_warm_start_improves_the_hypervolume(earlier, tmp_path):
    """Each search draws eight settings, with the same seeds."""
    ratios = []
    for seed in (0, 1, 2):
        first = earlier if seed == 0 else tmp_path / f"first{seed}"
        if seed:
            run_all(AskTell(config(20, seed), run_dir=first))
        cold = run_all(AskTell(config(10, seed), run_dir=tmp_path / f"cold{seed}"))
        warm = run_all(AskTell(config(10, seed), run_dir=tmp_path / f"warm{seed}", warm_start=first))
        ratios.append(own_volume(warm) / own_volume(cold))
    assert min(ratios) > 1
    assert np.median(ratios) > 1.2


@pytest.mark.slow
def test_prior_trials_inform_the_sampler_and_do_not_count(earlier, tmp_path):
    search = AskTell(config(5), run_dir=tmp_path / "run", warm_start=[earlier])
    asked = run_all(search)
    assert [trial.number for trial in asked] == [0, 1, 20, 21, 22], "two baselines, 18 prior trials, three of its own"
    assert [trial.role for trial in asked] == ["target", "published", *["sampled"] * 3]

    result = SearchResult.load(tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / "trials.csv")
    assert table["state"].value_counts().to_dict() == {"prior": 18, "complete": 5}
    before = pd.read_csv(earlier / "trials.csv")
    prior = table[table["state"] == "prior"]
    assert prior["origin"].tolist() == [f"{earlier}#{number}" for number in range(2, 20)]
    assert prior["role"].unique().tolist() == ["prior"]
    for name in [*SPACE, "ks_statistic", "model_utility"]:
        assert prior[name].tolist() == before[name].tolist()[2:]
    assert set(result.front["trial"]) <= {0, 1, 20, 21, 22}
    summary = json.loads((tmp_path / "run" / "search.json").read_text())
    assert (summary["complete"], summary["asked"]) == (5, 5)
    own = table[table["state"] == "complete"][["ks_statistic", "model_utility"]].to_numpy()
    assert result.hypervolume == pytest.approx(hypervolume(as_costs(own, ["min", "max"]), np.array([1.0, 0.0])))
    with pytest.raises(RunError, match="no complete trial"):
        result.pick(7)


def test_nsga2_breeds_from_prior_trials(earlier, tmp_path):
    """A child takes exact values from its parents. New draws do not have these values."""
    settings = config(12)
    settings["search"]["sampler"] = "nsga2"
    before = study_of(earlier).trials[2:]
    values = {value for trial in before for value in trial.params.values()}
    with AskTell(settings, run_dir=tmp_path / "run", warm_start=earlier) as search:
        asked = [search.ask() for _ in range(6)][2:]
    assert sum(value in values for trial in asked for value in trial.settings.values()) >= 4


@pytest.mark.slow
def test_a_resume_does_not_need_the_earlier_run(earlier, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(earlier, copy)
    with AskTell(config(6), run_dir=tmp_path / "run", warm_start=str(copy)) as search:
        first = [search.ask() for _ in range(2)]
        for trial in first:
            search.tell(trial, score(trial))
    shutil.rmtree(copy)
    again = run_all(AskTell.resume(tmp_path / "run"))
    assert [trial.number for trial in again] == [20, 21, 22, 23]
    assert len(study_of(tmp_path / "run").trials) == 24


@pytest.mark.slow
def test_a_kill_while_prior_trials_are_added_loses_none(earlier, tmp_path, monkeypatch):
    original = optuna.Study.add_trial

    def killed(study: optuna.Study, trial: Any) -> None:
        if len(study.get_trials(deepcopy=False)) == 9:
            raise KeyboardInterrupt
        original(study, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", killed)
    with pytest.raises(KeyboardInterrupt):
        AskTell(config(4), run_dir=tmp_path / "run", warm_start=earlier)
    monkeypatch.undo()
    assert [trial.number for trial in run_all(AskTell.resume(tmp_path / "run"))] == [0, 1, 20, 21]
    origins = [trial.user_attrs.get("origin") for trial in study_of(tmp_path / "run").trials]
    assert len([origin for origin in origins if origin]) == len({*origins} - {None}) == 18


@pytest.mark.slow
def test_a_warm_started_run_passes_its_prior_trials_on(earlier, tmp_path):
    run_all(AskTell(config(4), run_dir=tmp_path / "second", warm_start=earlier))
    with AskTell(config(4), run_dir=tmp_path / "third", warm_start=[earlier, tmp_path / "second"]):
        pass
    origins = [trial.user_attrs.get("origin") for trial in study_of(tmp_path / "third").trials[2:]]
    assert origins == [
        *(f"{earlier}#{number}" for number in range(2, 20)),
        *(f"{tmp_path / 'second'}#{number}" for number in (20, 21)),
    ]


OTHER_MODEL = {"model": {"scratch": {"hidden_size": 96}}}


@pytest.mark.slow
def test_another_models_front_runs_first_after_the_baselines(earlier, tmp_path):
    asked = run_all(AskTell(config(20, **OTHER_MODEL), run_dir=tmp_path / "run", warm_start=earlier))
    before = SearchResult.load(earlier)
    front = before.front[before.front["role"] == "sampled"].sort_values("trial")
    assert len(front) >= 3
    assert [trial.role for trial in asked[:3]] == ["target", "published", "sampled"]
    transferred = asked[2 : 2 + len(front)]
    wanted = {int(row["trial"]): {key: row[key] for key in SPACE} for _, row in front.iterrows()}
    assert sorted(map(str, (trial.settings for trial in transferred))) == sorted(map(str, wanted.values()))
    table = pd.read_csv(tmp_path / "run" / "trials.csv")
    assert set(table["state"]) == {"complete"}
    assert len(table) == 20
    origins = table["origin"].tolist()
    assert set(origins[2 : 2 + len(front)]) == {f"{earlier}#{number}" for number in wanted}
    assert all(isinstance(origin, float) for origin in [*origins[:2], *origins[2 + len(front) :]])


def test_settings_outside_the_space_are_left_out_with_one_warning(earlier, tmp_path):
    front = SearchResult.load(earlier).front
    front = front[front["role"] == "sampled"]
    border = float(np.median(front["method.similarity_threshold"]))
    narrow = SPACE | {"method.similarity_threshold": {"low": border, "high": 0.5}}
    inside = int((front["method.similarity_threshold"] >= border).sum())
    assert 0 < inside < len(front)
    message = f"{len(front) - inside} of {len(front)} trials of .* lie outside"
    with pytest.warns(UserWarning, match=message) as caught:
        search = AskTell(config(4, space=narrow, **OTHER_MODEL), run_dir=tmp_path / "run", warm_start=earlier)
    assert len(caught) == 1
    search.close()
    assert sum("origin" in trial.user_attrs for trial in study_of(tmp_path / "run").trials) == inside


def test_trials_under_other_fixed_settings_are_no_prior_trials(earlier, tmp_path):
    """The task is the same, but the scores are those of other runs."""
    with pytest.warns(UserWarning, match="18 of 18 trials"):
        AskTell(config(4, method={"batch_size": 3}), run_dir=tmp_path / "run", warm_start=earlier).close()
    assert len(study_of(tmp_path / "run").trials) == 2


@pytest.mark.slow
def test_a_setting_that_was_fixed_may_be_searched_now(tmp_path):
    fixed = SPACE | {"method.inner_steps": 3}
    run_all(AskTell(config(5, space=fixed), run_dir=tmp_path / "first"))
    wider = SPACE | {"method.inner_steps": {"low": 1, "high": 4}}
    AskTell(config(4, space=wider), run_dir=tmp_path / "run", warm_start=tmp_path / "first").close()
    prior = study_of(tmp_path / "run").trials[2:]
    assert [trial.params["method.inner_steps"] for trial in prior] == [3, 3, 3]


@pytest.mark.slow
def test_the_hash_of_the_rows_distinguishes_tasks_with_the_same_config(tmp_path):
    data = {"source": "files", "forget": str(tmp_path / "forget.jsonl"), "retain": str(tmp_path / "retain.jsonl")}
    mapping = config(4, data=data, reference={"source": "none"})

    def write(answer: str) -> None:
        for name in ("forget", "retain"):
            row = {"question": f"Who is {name}?", "answer": answer}
            (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")

    write("A")
    from ofmu.data.config import DataConfig
    from ofmu.data.load import load_data

    with AskTell(mapping, run_dir=tmp_path / "first") as search:
        for _ in range(4):
            trial = search.ask()
            metrics = {"extraction_strength": 0.5, "model_utility": 0.5}
            trial.directory.mkdir(parents=True)
            report = {"metrics": metrics, "data_hash": load_data(DataConfig(**data), 0).content_hash}
            (trial.directory / "metrics.json").write_text(json.dumps(report))
            search.tell(trial, metrics)
    AskTell(mapping, run_dir=tmp_path / "same", warm_start=tmp_path / "first").close()
    write("B")
    AskTell(mapping, run_dir=tmp_path / "other", warm_start=tmp_path / "first").close()
    states = [[trial.state.name for trial in study_of(tmp_path / name).trials[2:]] for name in ("same", "other")]
    assert states == [["COMPLETE", "COMPLETE"], ["WAITING", "WAITING"]]


def test_earlier_runs_that_do_not_fit_are_refused(earlier, tmp_path):
    def refused(error: type[Exception], match: str, mapping: dict[str, Any], start: Any) -> None:
        with pytest.raises(error, match=match) as caught:
            AskTell(mapping, run_dir=tmp_path / "run", warm_start=start)
        assert str(caught.value).count("\n") == 0
        assert not (tmp_path / "run").exists(), "nothing is written"

    refused(RunError, "no run directory", config(4), tmp_path / "nowhere")
    other = config(4)
    other["search"]["objectives"] = {"extraction_strength": "min", "model_utility": "max"}
    refused(ConfigError, r"searched ks_statistic \(min\) .* this search extraction_strength", other, earlier)
    refused(ConfigError, "the method 'ofmu', and this search is of 'npo'", {"method": {"name": "npo"}}, earlier)
    with AskTell(config(4), run_dir=tmp_path / "empty") as search:
        search.fail(search.ask(), "broken")
    refused(RunError, "no complete trial", config(4), tmp_path / "empty")


@pytest.mark.slow
def test_a_search_on_ray_refuses_an_earlier_run_before_ray_starts(earlier, tmp_path, monkeypatch):
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("tune.search.ray_session", started)
    with AskTell(config(4), run_dir=tmp_path / "empty") as search:
        search.fail(search.ask(), "broken")
    other = config(4)
    other["search"]["objectives"] = {"extraction_strength": "min", "model_utility": "max"}
    for error, match, mapping, start in (
        (RunError, "no run directory", config(4), tmp_path / "nowhere"),
        (RunError, "no complete trial", config(4), tmp_path / "empty"),
        (RunError, "no complete trial", config(4), [earlier, tmp_path / "empty"]),
        (ConfigError, "the method 'ofmu', and this search is of 'npo'", {"method": {"name": "npo"}}, earlier),
        (ConfigError, r"searched ks_statistic \(min\) .* this search extraction_strength", other, earlier),
    ):
        search = ParetoSearch(mapping, run_dir=tmp_path / "run", warm_start=start)
        with pytest.raises(error, match=match):
            search.run()
        assert not (tmp_path / "run").exists(), "nothing is written"
    # What fits goes on to Ray. The default objectives may change until the models are prepared.
    late = ParetoSearch(config(4, reference={"source": "none"}), run_dir=tmp_path / "run", warm_start=earlier)
    for search in (late, ParetoSearch(config(4), run_dir=tmp_path / "run", warm_start=earlier)):
        with pytest.raises(AssertionError, match="Ray was started"):
            search.run()


@pytest.mark.slow
def test_the_config_file_and_overrides_name_earlier_runs(earlier, tmp_path):
    from ofmu.run_config import override

    mapping = override(config(3), [f"search.warm_start={earlier}"])
    with AskTell(mapping, run_dir=tmp_path / "run") as search:
        assert search.config.search.warm_start == [str(earlier)]
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["search"]["warm_start"] == [str(earlier)]
    both = override(config(3), [f"search.warm_start=[{earlier}, {tmp_path / 'run'}]"])
    with pytest.raises(RunError, match=r"run, which has no complete trial"):
        AskTell(both, run_dir=tmp_path / "both")
