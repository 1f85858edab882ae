"""The report of any directory, and the list of directories."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from filelock import FileLock

from ofmu.cli.evaluate import show_report
from ofmu.cli.main import main
from ofmu.cli.report import report_command
from ofmu.cli.runs import runs_command
from ofmu.cli.show import show_command
from ofmu.errors import ConfigError, RunError
from ofmu.io.files import write_json
from ofmu.reports.stored import StoredRun
from report_runs import write_run
from search_runs import write_search, write_warm_search
from tune import AskTell
from tune.compare.result import ComparisonResult
from tune.reports import make_page, page_version, write_report
from tune.results.page import search_page
from tune.results.report import format_front
from tune.results.result import SearchResult
from tune.run_list import list_runs
from tune.rundir.kind import kind_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a search, a run and an evaluation. The two single runs share a cache."""
    folder = tmp_path_factory.mktemp("runs")
    write_search(folder / "search")
    write_run(folder / "one" / "run")
    evaluation = write_run(folder / "one" / "evaluation")
    (evaluation / "environment.json").unlink()
    from ofmu.run_files import RunFiles

    report = RunFiles(evaluation).read_report() or {}
    report |= {"model": "my/model", "reference": None, "baseline_metrics": {"target": {"model_utility": 0.9}}}
    write_json(evaluation / "metrics.json", report)
    return folder


def write_comparison(folder: Path, summarised) -> Path:
    from ofmu.io.environment import environment

    folder.mkdir()
    points = [[(0.2, 0.5)] * 3, [(0.4, 0.68)] * 3]
    ComparisonResult(folder, summarised({"a": points, "b": points})).save()
    write_json(folder / "environment.json", environment())
    (folder / "searches").mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("search", "search", "All trials"),
        ("one/run", "run", "Unlearning run"),
        ("one/evaluation", "evaluation", "my/model"),
    ],
)
def test_every_kind_of_directory_has_a_page(runs, name, kind, words):
    assert kind_of(runs / name) == kind
    page = write_report(runs / name)
    assert page == runs / name / "report.html"
    assert words in page.read_text()


def test_a_directory_of_something_else_is_refused(runs, tmp_path):
    for place in (runs, tmp_path):
        with pytest.raises(RunError, match="is not the directory of a search, a comparison"):
            make_page(place)
    with pytest.raises(RunError, match="There is no run directory"):
        make_page(tmp_path / "nowhere")
    (tmp_path / "metrics.json").write_text("[1]")
    with pytest.raises(RunError, match="is not the directory of a search"):
        make_page(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "one/run", "3"], "holds no search, so it has no trial 3: run ofmu show {}"),
        (["export", "one/run", "--output", "model"], "it holds a single run, whose model is {}/model"),
        (["search", "--resume", "one/run"], "it holds a single run"),
        (["compare", "--resume", "one/run"], "not the directory of a comparison: it holds a single run"),
        (["compare", "--resume", "search"], "it holds a search; ofmu search --resume {} continues it"),
        (["export", "one/evaluation", "--output", "model"], "it holds an evaluation of one model"),
        (["show", "search"], "name one of its trials too, such as ofmu show {} knee"),
    ],
)
def test_a_command_says_what_another_kind_of_directory_holds(runs, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(runs)
    assert main(arguments) == 1
    assert words.format(next(word for word in arguments[1:] if not word.startswith("--"))) in capsys.readouterr().err


def test_the_searches_of_a_comparison_are_named(summarised, tmp_path):
    comparison = write_comparison(tmp_path / "comparison", summarised)
    with pytest.raises(RunError, match=f"it holds a comparison, whose searches are in {comparison}/searches"):
        SearchResult.load(comparison)


@pytest.mark.slow
def test_a_search_without_its_config_is_not_called_another_kind(tmp_path):
    write_search(tmp_path / "search")
    (tmp_path / "search" / "config.yaml").unlink()
    with pytest.raises(RunError, match=r"not the directory of a search: it has no config\.yaml"):
        SearchResult.load(tmp_path / "search")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("model", "name the model of this run, {}/model"),
        ("trials/00003/model", "name the model of a trial, such as {}/trials/00003/model"),
        ("searches/npo/trials/00001/model", "such as {}/searches/npo/trials/00001/model"),
        ("elsewhere", "so it is not a model: name a saved model"),
    ],
)
def test_a_run_directory_in_place_of_a_model_is_answered_with_its_model(tmp_path, capsys, model, words):
    (tmp_path / "run" / model).mkdir(parents=True)
    (tmp_path / "run" / model / "config.json").write_text("{}")
    assert main(["evaluate", str(tmp_path / "run")]) == 1
    assert words.format(tmp_path / "run") in capsys.readouterr().err


@pytest.mark.slow
def test_a_report_of_the_user_is_kept(runs, tmp_path):
    directory = write_run(tmp_path / "run")
    (directory / "report.html").write_text("mine")
    with pytest.raises(RunError, match="is not of ofmu"):
        write_report(directory)
    assert (directory / "report.html").read_text() == "mine"


def test_the_version_changes_with_the_search(tmp_path):
    with AskTell({"search": {"num_trials": 3}}, run_dir=tmp_path / "run") as loop:
        loop.tell(loop.ask(), {"ks_statistic": 0.9, "model_utility": 0.8})
        before = page_version(tmp_path / "run")
        assert page_version(tmp_path / "run") == before
        loop.tell(loop.ask(), {"ks_statistic": 0.5, "model_utility": 0.8})
    assert page_version(tmp_path / "run") != before


def test_the_list_tells_kind_state_result_and_cost(runs, summarised, tmp_path_factory):
    entries = {entry.directory.relative_to(runs).as_posix(): entry for entry in list_runs(runs)}
    assert set(entries) == {"search", "one/run", "one/evaluation"}, "trials are not listed, nor is the cache"
    search = entries["search"]
    assert (search.kind, search.state, search.method) == ("search", "complete", "ofmu")
    assert "12 of 12 trials, 1 failed, front " in search.result
    assert search.gradient_evaluations == sum(10 * number for number in range(10))
    assert (entries["one/run"].state, entries["one/run"].seconds) == ("complete", 75.0)
    assert entries["one/run"].started[:2] == "20"
    assert entries["one/evaluation"].kind == "evaluation"
    folder = tmp_path_factory.mktemp("more")
    write_comparison(folder / "c", summarised)
    (entry,) = list_runs(folder)
    assert (entry.kind, entry.state, entry.method) == ("comparison", "complete", "a, b")
    methods = ComparisonResult.load(folder / "c").summary.methods
    on_seeds = [run.metrics["gradient_evaluations"] for method in methods for run in method.runs]
    assert len(on_seeds) > 0
    assert entry.gradient_evaluations == 800 + sum(on_seeds), "the searches, and the runs on other seeds"


def test_the_list_counts_the_cost_of_a_warm_started_searchs_own_trials(tmp_path):
    write_warm_search(tmp_path / "run")
    costs = {entry.directory.name: entry.gradient_evaluations for entry in list_runs(tmp_path)}
    assert costs == {"run": 4 * 7, "run-earlier": sum(10 * number for number in range(10))}


@pytest.mark.slow
def test_the_list_and_the_headings_name_the_variant(tmp_path):
    write_run(tmp_path / "first", method={"variant": "first_order"})
    write_run(tmp_path / "npo", method={"name": "npo"})
    write_search(tmp_path / "search")
    with AskTell({"method": {"variant": "projection"}}, num_trials=2, run_dir=tmp_path / "other") as search:
        search.tell(search.ask(), {"ks_statistic": 0.5, "model_utility": 0.5})
    found = {entry.directory.name: entry.method for entry in list_runs(tmp_path)}
    assert found == {"first": "ofmu@first_order", "npo": "npo", "search": "ofmu", "other": "ofmu@projection"}
    assert "OFMU (first_order) on generated" in write_report(tmp_path / "first").read_text()
    assert "OFMU (projection) on generated" in write_report(tmp_path / "other").read_text()
    assert "OFMU on generated" in write_report(tmp_path / "search").read_text()


@pytest.mark.slow
def test_people_read_sizes_in_units_and_files_keep_bytes(runs, tmp_path, capsys):
    objectives = {"peak_memory_bytes": "min", "model_utility": "max"}
    result = write_search(tmp_path / "search", objectives=objectives, reference=False)
    assert main(["show", str(tmp_path / "search"), "3"]) == 0
    shown = capsys.readouterr().out
    front = "\n".join(" ".join(row) for row in format_front(result))
    run = StoredRun(runs / "one" / "run")
    show_report(run.report | {"model": "m", "reference": None, "baseline_metrics": {}})
    report = capsys.readouterr().out
    page = search_page(result)
    # What a browser shows; the values by which tables and charts sort and draw stay bytes.
    visible = re.sub(r"<script.*?</script>|data-value=\"[^\"]*\"", "", page, flags=re.DOTALL)
    for text in (shown, front, report, visible):
        assert "477 MiB" in text
        for raw in ("500000000", "5e8", "5e+08"):
            assert raw not in text
    assert "500000000" in (tmp_path / "search" / "trials.csv").read_text()
    assert '"peak_memory_bytes": 500000000' in (runs / "one" / "run" / "metrics.json").read_text()


def test_a_search_at_work_is_running_and_else_interrupted(tmp_path):
    with AskTell({"search": {"num_trials": 3}}, run_dir=tmp_path / "run") as loop:
        loop.tell(loop.ask(), {"ks_statistic": 0.9, "model_utility": 0.8})
        assert [entry.state for entry in list_runs(tmp_path)] == ["running"]
    assert [entry.state for entry in list_runs(tmp_path)] == ["interrupted"]
    with FileLock(tmp_path / "run" / ".lock"):
        assert list_runs(tmp_path)[0].state == "running"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", "search.json", "trials.csv"])
def test_a_damaged_directory_does_not_end_the_list(tmp_path, name):
    write_search(tmp_path / "a")
    write_run(tmp_path / "b" / "run")
    (tmp_path / "a" / name).write_text("{broken")
    entries = list_runs(tmp_path)
    assert [entry.kind for entry in entries] == ["search", "run"]
    assert entries[0].state == "unreadable" or entries[0].gradient_evaluations is None
    assert entries[1].state == "complete"


@pytest.mark.slow
def test_the_command_lists_them(runs, tmp_path):
    output = CliRunner().invoke(runs_command, [str(runs)]).output
    assert output.count("complete") == 3
    assert str(runs / "search") in output
    assert "There is no run directory below" in CliRunner().invoke(runs_command, [str(tmp_path)]).output
    error = CliRunner().invoke(runs_command, [str(tmp_path / "nowhere")]).exception
    assert isinstance(error, RunError)
    assert "name the folder" in str(error)


@pytest.mark.slow
def test_the_report_command_prints_where_the_page_is(runs):
    result = CliRunner().invoke(report_command, [str(runs / "search")])
    assert result.exit_code == 0, result.exception
    assert f"The report, for a browser: {runs}/search/report.html" in result.output
    assert result.output.count("report.html") == 1
    assert "retrained" in result.output
    result = CliRunner().invoke(report_command, [str(runs / "one" / "run")])
    assert f"The report is in {runs}/one/run/report.html" in result.output


def test_a_port_without_serve_is_refused(runs):
    result = CliRunner().invoke(report_command, [str(runs / "search"), "--port", "80"])
    assert result.exit_code == 2
    assert "--port needs --serve" in result.output


def test_serving_a_directory_of_something_else_is_refused(tmp_path):
    error = CliRunner().invoke(report_command, [str(tmp_path), "--serve"]).exception
    assert isinstance(error, RunError)


def test_serving_on_a_taken_port_is_refused(runs):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        error = CliRunner().invoke(report_command, [str(runs / "search"), "--serve", "--port", port]).exception
    assert isinstance(error, ConfigError)
    assert "is taken" in str(error)


def test_show_prints_settings_metrics_and_state(runs):
    result = CliRunner().invoke(show_command, [str(runs / "search"), "5"])
    assert result.exit_code == 0, result.exception
    assert result.output.startswith("Trial 5: sampled, complete")
    assert "method.inner_lr" in result.output
    assert "ks_statistic" in result.output
    failed = CliRunner().invoke(show_command, [str(runs / "search"), "11"])
    assert "Trial 11: sampled, failed" in failed.output
    assert "Reason: the loss became NaN" in failed.output
    knee = CliRunner().invoke(show_command, [str(runs / "search"), "knee"])
    assert "on the front" in knee.output


def test_show_quotes_paths_in_commands(tmp_path):
    search = tmp_path / "my search"
    write_search(search)
    trial = search / "trials" / "00005"
    shutil.rmtree(trial / "model", ignore_errors=True)
    (trial / "config.yaml").write_text("{}")
    output = CliRunner().invoke(show_command, [str(search), "5"]).output
    assert f"ofmu unlearn '{trial / 'config.yaml'}' --output DIR" in output
    error = CliRunner().invoke(show_command, [str(search)]).exception
    assert str(error).endswith(f"such as ofmu show '{search}' knee")


@pytest.mark.slow
def test_show_prints_the_answers_of_a_trial(tmp_path):
    write_search(tmp_path / "search")
    trial = tmp_path / "search" / "trials" / "00005"
    for path in write_run(tmp_path / "run").iterdir():
        path.replace(trial / path.name)
    output = CliRunner().invoke(show_command, [str(tmp_path / "search"), "5", "--rows", "2"]).output
    assert "Forget rows: 2 of 8" in output
    assert output.count("right answer:") == 4
    assert "Before (target): It is the forget number0." in output
    assert "After (this model): It is something else." in output
    assert "forget_truth_ratio" in output
    without = CliRunner().invoke(show_command, [str(tmp_path / "search"), "5", "--rows", "0"]).output
    assert "right answer:" not in without


@pytest.mark.parametrize("trial", ["99", "best", "-1"])
def test_show_of_an_unknown_trial_is_refused(runs, trial):
    result = CliRunner().invoke(show_command, [str(runs / "search"), "--", trial])
    assert isinstance(result.exception, RunError)
    assert "name knee, or a number of 0 … 11" in str(result.exception)


def test_a_single_run_and_an_evaluation_are_shown(runs: Path) -> None:
    def shown(name: str) -> str:
        result = CliRunner().invoke(show_command, [str(runs / "one" / name), "--rows", "1"])
        assert result.exit_code == 0, result.output
        return result.output

    run, evaluation = shown("run"), shown("evaluation")
    metrics = json.loads((runs / "one" / "run" / "metrics.json").read_text())["metrics"]
    for text in (run, evaluation):
        assert f"{metrics['ks_statistic']:.4g}" in text
        assert "It is something else." in text
    assert "method.name" in run
    assert "method.name" not in evaluation
