from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from ofmu.cli.export import export_command
from ofmu.cli.report import report_command
from ofmu.cli.search import search_command
from ofmu.config.files import validate
from ofmu.errors import ConfigError, OfmuError, RunError
from tune import AskTell
from tune.callbacks.base import Progress
from tune.callbacks.console import ConsoleCallback, describe
from tune.config import SearchConfig
from tune.results.report import format_front, sentence_beyond_knee
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.rundir.seed_runs import Confirmation, PointRuns, SeedRun
from tune.study.searcher import StudySearcher, open_study


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(search_command, list(arguments))


@pytest.fixture
def finished(tmp_path: Path) -> RunDirectory:
    """A search of four trials with made-up scores and tiny saved models."""
    from transformers import LlamaConfig, LlamaForCausalLM

    run = RunDirectory.create_new(tmp_path / "run")
    run.mkdir()
    config = validate(SearchConfig, {"search": {"num_trials": 4}})
    run.write_config(config)
    found = StudySearcher(open_study(run.study_file, config), config, run.trial)
    shape = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=16)
    for number, (distance, utility) in enumerate([(0.9, 0.6), (0.95, 0.5), (0.3, 0.55), (0.25, 0.1)]):
        specification = found.suggest(str(number))
        directory = Path(specification["trial_dir"])
        LlamaForCausalLM(shape).save_pretrained(directory / "model")
        metrics = {"ks_statistic": distance, "model_utility": utility, "forget_rouge": 0.5, "gradient_evaluations": 9.0}
        (directory / "metrics.json").write_text(json.dumps({"metrics": metrics}))
        (directory / "config.yaml").write_text("seed: 0\n")
        found.on_trial_complete(str(number), {"outcome": json.dumps({"metrics": metrics})})
    return run


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["quickstart", "--preset", "tofu"], ConfigError, "not both"),
        (["--preset", "quickstat"], ConfigError, "did you mean 'quickstart'"),
        (["no-such-file.yaml"], ConfigError, "Cannot read the config"),
        (["search.num_trails=3"], ConfigError, "did you mean 'search.num_trials'"),
        (["search.space.method.inner_lr.low=5"], ConfigError, "search.space.method.inner_lr"),
        (["--resume", "nowhere"], RunError, "no run directory nowhere"),
        (["--resume", "nowhere", "--run-dir", "x"], ConfigError, "leave CONFIG and --run-dir out"),
    ],
)
def test_wrong_arguments_get_one_sentence(arguments, kind, words):
    error = invoke(*arguments).exception
    assert isinstance(error, kind)
    assert words in str(error)
    assert "\n" not in str(error)


def test_trials_and_further_seeds_are_settings_of_the_search(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("tune.search.ParetoSearch.__init__", lambda self, mapping, **kwargs: seen.append(mapping))
    monkeypatch.setattr("tune.search.ParetoSearch.run", lambda self: SystemExit(0))
    invoke("quickstart", "--trials", "7", "--confirm", "2", "--run-dir", str(tmp_path / "run"))
    assert (seen[0]["search"]["num_trials"], seen[0]["search"]["confirm_seeds"]) == (7, 2)


def test_a_directory_in_place_of_a_config_gets_the_right_command(finished, tmp_path):
    for place in (finished.path, tmp_path):
        error = invoke(str(place)).exception
        assert isinstance(error, ConfigError)
        assert f"name the file {finished.path}/config.yaml, or continue" in str(error)
        assert f"ofmu search --resume {finished.path}" in str(error)
    (tmp_path / "empty").mkdir()
    error = invoke(str(tmp_path / "empty")).exception
    assert isinstance(error, ConfigError)
    assert "name a YAML file, or a preset" in str(error)


def test_a_directory_that_is_no_search_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    error = invoke("--resume", str(tmp_path)).exception
    assert isinstance(error, RunError)
    assert "not the directory of a search" in str(error)


@pytest.mark.parametrize("option", ["--run-dir", "--output"])
def test_a_run_directory_in_use_is_refused(finished, option):
    error = invoke(option, str(finished.path)).exception
    assert isinstance(error, RunError)
    assert "--resume" in str(error)


def test_a_resume_cannot_change_what_is_searched(finished):
    error = invoke("--resume", str(finished.path), "method.batch_size=3").exception
    assert isinstance(error, ConfigError)
    assert "method.batch_size" in str(error)


@pytest.mark.slow
def test_a_finished_search_shows_its_front_again(finished):
    result = invoke("--resume", str(finished.path))
    assert result.exit_code == 0, result.exception
    assert "4 trials complete, 0 failed" in result.output
    assert "ofmu export" in result.output
    lines = [line for line in result.output.splitlines() if line.startswith(("2 ", "3 ", "0 "))]
    assert [line.split()[:4] for line in lines[::2]] == [["3", "sampled", "0.25", "0.1"], ["0", "target", "0.9", "0.6"]]
    assert lines[1].split()[:6] == ["2", "sampled,", "the", "knee", "0.3", "0.55"]
    assert (
        "Trial 3 forgets more than the knee (ks_statistic 0.25, the knee 0.3; model_utility 0.1, the knee 0.55): "
        "--pick 3 takes its model" in result.output
    )
    assert "inner_lr_scale " in lines[0]
    assert lines[2].endswith("outer_steps 0")
    assert (finished.path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "\x1b" not in result.output


def test_export_gives_a_model_that_loads(finished, tmp_path):
    from transformers import AutoModelForCausalLM

    target = tmp_path / "model"
    result = CliRunner().invoke(export_command, [str(finished.path), "--output", str(target)])
    assert result.exit_code == 0, result.exception
    assert "Trial 2 (ks_statistic 0.3, model_utility 0.55)" in result.output
    assert {"metrics.json", "config.yaml"} <= {path.name for path in target.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(target)
    kept = AutoModelForCausalLM.from_pretrained(finished.trial(2) / "model")
    assert all((a == b).all() for a, b in zip(model.parameters(), kept.parameters(), strict=True))


@pytest.mark.parametrize(
    ("pick", "words"),
    [
        ("9" * 5000, "no complete trial"),
        ("-1", "no complete trial"),
        ("", "no complete trial"),
        ("²", "no complete trial"),
        ("9", "no complete trial"),
        ("best", "pick knee, or one of the front's, 3, 2, 0"),
    ],
)
def test_export_of_an_unknown_trial_is_refused(finished, tmp_path, pick, words):
    arguments = [str(finished.path), "--pick", pick, "--output", str(tmp_path / "model")]
    error = CliRunner().invoke(export_command, arguments).exception
    assert isinstance(error, OfmuError)
    assert words in str(error)


def test_export_overwrites_nothing_and_reports_a_model_that_was_not_kept(finished, tmp_path):
    result = SearchResult.load(finished.path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(RunError, match="already exists"):
        result.knee.export(tmp_path / "taken")
    finished.delete_model(1)
    with pytest.raises(RunError, match="not kept"):
        result.pick(1).export(tmp_path / "gone")


def test_the_fronts_columns_start_with_objectives_settings_and_costs(finished):
    columns = list(SearchResult.load(finished.path).front.columns)
    settings = [name for name in columns if "." in name]
    assert len(settings) >= 7
    assert columns == [
        "trial",
        "ks_statistic",
        "model_utility",
        *settings,
        "gradient_evaluations",
        "role",
        "forget_rouge",
    ]


@pytest.fixture
def fruitless(tmp_path: Path) -> RunDirectory:
    """A search whose two trials lack an objective. The second trial's evaluation gives a reason."""
    run = RunDirectory.create_new(tmp_path / "run")
    run.mkdir()
    config = validate(SearchConfig, {"search": {"num_trials": 2}})
    run.write_config(config)
    found = StudySearcher(open_study(run.study_file, config), config, run.trial)
    for number in range(2):
        directory = Path(found.suggest(str(number))["trial_dir"])
        directory.mkdir(parents=True)
        reasons = {"ks_statistic": "no reference was given"} if number else {}
        (directory / "metrics.json").write_text(json.dumps({"metrics": {"model_utility": 0.5}, "reasons": reasons}))
        found.on_trial_complete(str(number), {"outcome": json.dumps({"metrics": {"model_utility": 0.5}})})
    return run


@pytest.mark.slow
def test_a_search_without_a_front_fails_without_a_hint_to_export(fruitless):
    sentence = f"No trial is complete: the column 'reason' of {fruitless.path}/trials.csv says why"
    resumed = invoke("--resume", str(fruitless.path))
    assert "0 trials complete, 2 failed; everything is in" in resumed.output
    assert "ofmu export" not in resumed.output
    for result in (
        resumed,
        CliRunner().invoke(report_command, [str(fruitless.path)]),
        CliRunner().invoke(export_command, [str(fruitless.path), "--output", str(fruitless.path / "model")]),
    ):
        assert isinstance(result.exception, RunError)
        assert str(result.exception) == sentence


def test_a_reason_that_all_failed_trials_share_is_said(fruitless):
    result = SearchResult.load(fruitless.path)
    result.trials["reason"] = "engine.device is 'cuda', but no GPU is visible: use 'auto' or 'cpu'"
    with pytest.raises(RunError) as caught:
        result.require_front()
    assert str(caught.value) == (
        f"No trial of {fruitless.path} is complete, and all failed for this reason: engine.device is 'cuda', but no "
        "GPU is visible: use 'auto' or 'cpu'"
    )


def test_a_missing_objective_carries_the_evaluations_own_reason(fruitless):
    reasons = SearchResult.load(fruitless.path).trials["reason"].tolist()
    missing = "the run reported no ks_statistic"
    assert reasons == [missing, f"{missing}: no reference was given"]


def test_the_console_names_the_files_of_worker_groups_steps(finished, capsys):
    result = SearchResult.load(finished.path)
    for workers, expected in ((0, False), (2, True)):
        cluster = result.config.cluster.model_copy(update={"num_workers": workers})
        config = result.config.model_copy(update={"cluster": cluster})
        start = Progress(replace(result, config=config), 4, 0, 0, (), 0.0, None)
        ConsoleCallback(Console(width=300)).on_start(start)
        output = capsys.readouterr().out
        assert ("its outer steps are not shown live" in output) is expected
        assert (f"{finished.path}/trials/*/history.jsonl" in output) is expected


@pytest.mark.parametrize("limit", [None, "max_hours", "max_gradient_evaluations"])
def test_the_number_of_trials_of_a_limited_search_is_an_estimate(finished, capsys, limit):
    result = SearchResult.load(finished.path)
    search = result.config.search.model_copy(update={"num_trials": 200, **({limit: 1} if limit else {})})
    result = replace(result, config=result.config.model_copy(update={"search": search}))
    ConsoleCallback(Console(width=300)).on_start(Progress(result, 200, 0, 0, (), 0.0, None))
    assert (": at most 200 trials, in" if limit else ": 200 trials, in") in capsys.readouterr().out
    line = describe(Progress(result, 9, 4, 0, (), 0.0, None))
    assert line.startswith("4 of about 9 trials, " if limit else "4/9 trials, ")


def test_the_plot_marks_front_baselines_and_reference(finished):
    (finished.path / "reference.json").write_text('{"ks_statistic": 0.0, "model_utility": 0.62, "forget_rouge": null}')
    figure = SearchResult.load(finished.path).plot()
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert {"front", "untouched target", "published setting", "retrained"} <= set(labels)
    line = next(line for line in figure.axes[0].lines if line.get_label() == "front")
    assert sorted(line.get_xdata()) == [0.25, 0.3, 0.9]


@pytest.mark.slow
def test_commands_do_not_import_ray_before_they_run():
    import subprocess

    script = (
        "import sys, ofmu.cli.search, ofmu.cli.export, tune\nassert not {'ray', 'optuna', 'torch'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


@pytest.mark.slow
def test_a_trial_of_the_front_without_utility_is_marked(tmp_path):
    with AskTell({}, {"ks_statistic": "min", "model_utility": "max"}, 3, tmp_path / "run") as search:
        for distance, utility in [(0.9, 0.6), (0.1, 0.0), (0.5, 0.3)]:
            search.tell(search.ask(), {"ks_statistic": distance, "model_utility": utility})
        header, *rows = format_front(search.result())
    roles = {row[0]: row[header.index("role")] for row in rows}
    assert roles == {"0": "target", "1": "published, useless: model_utility 0", "2": "sampled, the knee"}
    # A model that knows nothing has not forgotten more than the knee.
    assert search.result().beyond_knee is None


@pytest.mark.slow
def test_hardly_any_utility_counts_as_none(tmp_path):
    points = [(0.9, 0.94), (0.1, 2.9e-7), (0.5, 0.7), (0.4, 0.06)]
    with AskTell({}, {"ks_statistic": "min", "model_utility": "max"}, 4, tmp_path / "run") as search:
        for distance, utility in points:
            search.tell(search.ask(), {"ks_statistic": distance, "model_utility": utility})
        result = search.result()
    header, *rows = format_front(result)
    roles = {row[0]: row[header.index("role")] for row in rows}
    assert roles["1"] == "published, useless: model_utility 2.9e-7"
    assert "useless" not in roles["3"]
    # Above a twentieth of the target's utility both values are named.
    sentence = "forgets more than the knee (ks_statistic 0.4, the knee 0.5; model_utility 0.06, the knee 0.7)"
    assert sentence_beyond_knee(result) == f"Trial 3 {sentence}"


def point_on_seeds(trial: int, name: str, value: float) -> PointRuns:
    runs = tuple(SeedRun(seed=seed, directory=f"{trial}-{seed}", metrics={name: value}) for seed in (4, 5))
    return PointRuns(trial=trial, settings={}, runs=runs)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "beyond"), [("min", 3), ("max", 1)])
def test_the_trial_that_forgets_more_than_the_knee_is_named_in_either_direction(tmp_path, way, beyond):
    points = [(0.9, 0.6), (0.92, 0.1), (0.3, 0.55), (0.2, 0.1), (0.7, 0.57)]
    if way == "max":
        points = [(0.1, 0.6), (0.9, 0.1), (0.7, 0.55), (0.3, 0.57), (0.2, 0.1)]
    objectives = {"forget_truth_ratio" if way == "max" else "ks_statistic": way, "model_utility": "max"}
    with AskTell({}, objectives, 5, tmp_path / "run") as search:
        for distance, utility in points:
            search.tell(search.ask(), dict(zip(objectives, (distance, utility), strict=True)))
        result = search.result()
    assert result.knee.number == 2
    assert result.beyond_knee.number == beyond
    name, better = next(iter(objectives)), 1 if way == "max" else -1
    for gain, words in ((0.1, "and on"), (0.0, "but not on"), (-0.1, "but not on")):
        # AskTell's trials do not run, so nothing confirms them by itself.
        points = {beyond: 0.5 + better * gain, 2: 0.5}
        result.__dict__["confirmation"] = Confirmation(
            seeds=(4, 5), points=tuple(point_on_seeds(trial, name, value) for trial, value in points.items())
        )
        assert f"), {words} 2 further seeds ({points[beyond]:g}, the knee 0.5)" in sentence_beyond_knee(result)
    report = CliRunner().invoke(report_command, [str(tmp_path / "run")])
    assert f"Trial {beyond} forgets more than the knee" in report.output
    assert f"Trial {beyond} forgets more than the knee" in (tmp_path / "run" / "report.html").read_text()
