"""What the page of a run says, read from its HTML. How it looks and works in a browser: test_in_browser."""

from __future__ import annotations

import json
import re

import pytest

from ofmu.errors import PruningRecord, RunError
from ofmu.io.environment import environment
from ofmu.io.files import write_json
from ofmu.reports.run import run_page, write_run_page
from ofmu.run_files import RunFiles
from report_runs import SCRIPT, write_run


@pytest.mark.slow
def test_metrics_stand_beside_the_target_and_the_retrained_model(tmp_path):
    html = run_page(write_run(tmp_path / "run"))
    line = html[html.index(">forget_probability<") :].partition("</tr>")[0]
    values = re.findall(r'data-label="[^"]+">([^<]+)<', line)
    # exp(-mean loss): the mean over 8 rows of exp(-(loss + 0.05 i) / 4)
    expected = [sum(2.718281828 ** -((loss + 0.05 * i) / 4) for i in range(8)) / 8 for loss in (2.4, 0.2, 2.5)]
    assert [float(value) for value in values] == pytest.approx(expected, rel=1e-3)
    assert "lower" in line
    assert "mean length-normalised probability of the forget answers" in line
    assert 'aria-hidden="true"' in line, "the picture of the range"


@pytest.mark.slow
def test_answers_of_three_models_stand_side_by_side(tmp_path):
    html = run_page(write_run(tmp_path / "run"))
    card = html[html.index("<h4>What is forget 0?</h4>") :].partition("</article>")[0]
    names = ["Right answer", "Before (target)", "After (this model)", "Retrained"]
    places = [card.index(name) for name in names]
    assert places == sorted(places)
    before, after, retrained = card.split("<h5>")[2:]
    assert "<mark>number0</mark>" in before
    assert "It is something else." in after
    assert "<mark>" not in after
    assert "It may be 7." in retrained
    assert html.index("Forget rows") < html.index("Retain rows") < html.index("World facts")


@pytest.mark.slow
def test_the_verdict_says_what_the_test_can_tell(tmp_path):
    html = run_page(write_run(tmp_path / "run"))
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert report["forget_quality"] < 0.05
    assert "the KS test tells this model from the retrained model" in html
    assert f"D = {report['ks_statistic']:.3g}, p = {report['forget_quality']:.5f}"[:-1] in html
    assert "n = 8)" in html


@pytest.mark.slow
def test_a_run_without_its_baselines_stands_alone(tmp_path):
    html = run_page(write_run(tmp_path / "run", baselines=False))
    assert "not at hand" in html
    assert "Before (target)" not in html
    assert "After (this model)" in html


@pytest.mark.slow
def test_rows_and_metrics_of_the_user_are_escaped(tmp_path):
    html = run_page(write_run(tmp_path / "run", question=SCRIPT, answers=SCRIPT, more_metrics={SCRIPT: 1.0}))
    assert "<script>document.title" not in html
    assert html.count("&lt;/script&gt;&lt;script&gt;document.title") >= 10


@pytest.mark.slow
def test_an_unfinished_run_shows_how_far_it_is(tmp_path):
    directory = write_run(tmp_path / "run")
    (directory / "metrics.json").unlink()
    (directory / "scores.json").unlink()
    with (directory / "history.jsonl").open("a") as stream:
        stream.write('{"outer_step": 5, "forget_')
    html = run_page(directory)
    assert "This run is not complete: 4 rounds are done." in html
    assert '"losses"' in html
    assert ">Metrics<" not in html


def test_a_pruned_run_says_where_it_ended(tmp_path):
    files = RunFiles(tmp_path)
    write_json(files.environment, environment())
    files.write_pruning_record(PruningRecord(round=3, total=12, metrics={"seconds": 5.0}))
    assert "Early stopping ended this run after round 3 of 12." in run_page(tmp_path)


def test_a_run_of_another_program_has_a_page_of_its_metrics(tmp_path):
    """A trial of the caller's own executor stores metrics only."""
    files = RunFiles(tmp_path)
    files.write_report({"metrics": {"ks_statistic": 0.25, "mine": 3.5, "gone": None}})
    html = run_page(tmp_path)
    assert ">ks_statistic<" in html
    assert ">mine<" in html
    assert ">gone<" not in html


@pytest.mark.slow
def test_reasons_of_missing_metrics_are_told(tmp_path):
    directory = write_run(tmp_path / "run", answers="x")
    html = run_page(directory)
    reasons = json.loads((directory / "metrics.json").read_text())["reasons"]
    assert reasons
    for name, reason in reasons.items():
        assert name in html
        assert reason.replace("'", "&#39;") in html


@pytest.mark.slow
@pytest.mark.parametrize("section", ["method", "evaluation"])
def test_a_page_runs_no_code_that_a_directory_names(tmp_path, monkeypatch, section):
    """A run directory may come from somebody else, and a module beside it would be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil_report.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    directory = write_run(tmp_path / "run")
    report = json.loads((directory / "metrics.json").read_text())
    names = {"method": {"name": "mine", "module": "evil_report"}, "evaluation": {"custom_metrics": ["evil_report:f"]}}
    report["config"][section] = names[section] if section == "method" else report["config"][section] | names[section]
    write_json(directory / "metrics.json", report)
    html = run_page(directory)
    assert ">Metrics<" in html
    assert "Before (target)" in html
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["metrics.json", "scores.json", "history.jsonl", "config.yaml"])
def test_links_and_damaged_files_are_refused_in_one_sentence(tmp_path, name):
    directory = write_run(tmp_path / "run")
    if name == "config.yaml":
        (directory / "metrics.json").unlink()
    (directory / name).rename(tmp_path / "elsewhere")
    (directory / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link to"):
        run_page(directory)


def test_a_link_in_place_of_the_report_is_refused(tmp_path):
    directory = write_run(tmp_path / "run")
    (tmp_path / "theirs.html").write_text("theirs")
    (directory / "report.html").symlink_to(tmp_path / "theirs.html")
    with pytest.raises(RunError, match="is a link to"):
        write_run_page(directory)
    assert (tmp_path / "theirs.html").read_text() == "theirs"


@pytest.mark.slow
def test_an_evaluation_shows_the_answers_of_the_models_that_it_compared_with(tmp_path):
    directory = write_run(tmp_path / "run")
    report = json.loads((directory / "metrics.json").read_text())
    cache = tmp_path / "cache" / "scores"
    report |= {"model": "my/model", "reference": None, "baseline_metrics": {"target": {"model_utility": 0.5}}}
    report |= {
        "baseline_scores": {"target": str(cache / "target_scores" / "scores.json"), "retrained": "/nowhere.json"}
    }
    write_json(directory / "metrics.json", report)
    html = run_page(directory)
    assert "Before (target)" in html
    assert ">Retrained<" not in html
    # The directory of an evaluation holds no config file from which a command could make it again.
    assert "To make it again" not in html


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        run_page(tmp_path)


@pytest.mark.slow
def test_values_that_are_no_number_are_left_out_of_a_curve(tmp_path):
    records = [
        {"outer_step": step, "forget_loss": loss} for step, loss in enumerate([1.0, float("nan"), float("inf"), 3.0])
    ]
    html = run_page(write_run(tmp_path / "run", history=records))
    assert 'aria-label="Losses. forget loss: from 1 to 3."' in html


@pytest.mark.slow
def test_every_recorded_quantity_has_a_curve(tmp_path):
    html = run_page(write_run(tmp_path / "run"))
    for name in ("losses", "similarity", "norms", "errors", "phases"):
        assert f'id="{name}"' in html
    assert 'aria-label="Losses. forget loss: from 0.5 to 2; retain loss: from 0.4 to 0.4."' in html
