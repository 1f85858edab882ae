"""What the page of a search says, read from its HTML."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ofmu.run_files import ENVIRONMENT, read_stored
from report_runs import SCRIPT
from search_runs import write_search, write_warm_search
from tune.pareto import as_costs, hypervolume
from tune.results.page import search_page
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return write_search(tmp_path_factory.mktemp("searches") / "run")


def cells(html: str, table: str) -> list[list[str]]:
    body = html[html.index(f'id="{table}"') :].partition("<tbody>")[2].partition("</tbody>")[0]
    rows = re.findall(r"<tr.*?>(.*?)</tr>", body, re.S)
    return [[re.sub(r"<[^>]+>", "", cell).strip() for cell in re.split(r"</t[dh]>", row)[:-1]] for row in rows]


def test_a_search_writes_its_page(result):
    html = (result.run_dir / "report.html").read_text()
    assert 'content="ofmu ' in html
    assert len(html) < 5_000_000
    started = read_stored(result.run_dir / ENVIRONMENT)["time"]
    assert f"<dt>started</dt><dd>{started}</dd>" in html


@pytest.mark.slow
def test_every_trial_is_a_row_with_its_command(result):
    html = search_page(result)
    rows = cells(html, "trials")
    table = pd.read_csv(result.run_dir / "trials.csv")
    assert [int(row[0]) for row in rows] == table["trial"].tolist()
    assert [row[1] for row in rows] == table["state"].tolist()
    assert [float(row[4]) for row in rows[:10]] == pytest.approx(table["ks_statistic"].tolist()[:10], rel=1e-3)
    assert [int(row[0]) for row in rows if row[3] == "yes"] == sorted(result.front["trial"])
    assert rows[3][-1].startswith(f"ofmu export {result.run_dir} --pick 3 --output DIR")
    assert f"ofmu unlearn {result.run_dir}/trials/00002/config.yaml" in rows[2][-1] or rows[2][-1] == ""


@pytest.mark.slow
def test_the_chosen_point_stands_beside_the_models(result):
    html = search_page(result)
    knee = result.knee
    assert not [name for name, value in knee.values.items() if isinstance(value, np.generic)]
    assert f"The chosen point is trial {knee.number}, the knee of the front" in html
    for name in ("untouched target", "published setting", "chosen (knee)", "retrained model"):
        assert name in html
    assert "D = 0.95, p = 0.001, n = 40" in html, "the target's test"
    assert "does not tell it from the retrained model" in html or "tells it from the retrained model" in html


@pytest.mark.slow
def test_reasons_of_failures_are_told_with_their_trials(result):
    html = search_page(result)
    assert "the loss became NaN" in html
    assert "stopped early, after round 2 of 9" in html


@pytest.mark.slow
def test_the_curve_ends_at_the_hypervolume(result):
    html = search_page(result)
    end = re.search(r"From [\d.]+ after the first trial to ([\d.]+) after the last", html)
    assert end is not None
    rows = pd.read_csv(result.run_dir / "trials.csv").query("state == 'complete'")
    costs = as_costs(rows[["ks_statistic", "model_utility"]].to_numpy(), ["min", "max"])
    # Both objectives are between 0 and 1, so the reference point is D = 1 and utility = 0.
    assert float(end[1]) == pytest.approx(hypervolume(costs, as_costs([[1.0, 0.0]], ["min", "max"])[0]), abs=6e-4)


@pytest.mark.slow
def test_text_of_the_search_is_escaped(tmp_path):
    space = {
        "method.inner_lr": {"low": 0.01, "high": 0.1, "log": True},
        "method.similarity_scale": {"choices": ["gradients", "absolute"]},
    }
    folder = tmp_path / "<script>document.title='x'</script>".replace("/", "_")
    html = search_page(write_search(folder, space=space, failure=SCRIPT))
    assert "<script>document.title" not in html
    assert "&lt;script&gt;document.title" in html


def test_a_search_without_a_complete_trial_has_a_page(tmp_path):
    from tune import AskTell

    with AskTell({"search": {"num_trials": 3}}, run_dir=tmp_path / "run") as loop:
        loop.fail(loop.ask(), "no memory")
        html = search_page(loop.result())
    assert "No trial is complete yet." in html
    assert "no memory" in html
    assert 'id="front"' not in html


@pytest.mark.slow
def test_three_objectives_are_shown(tmp_path):
    objectives = {"ks_statistic": "min", "model_utility": "max", "seconds": "min"}
    html = search_page(write_search(tmp_path / "run", objectives=objectives, reference=False))
    assert "Colour: seconds" in html
    assert "</span>retrained model" not in html


@pytest.mark.slow
def test_the_costs_of_an_earlier_search_are_not_those_of_a_warm_started_one(tmp_path):
    html = search_page(write_warm_search(tmp_path / "run"))
    tile = re.search(r">Gradient evaluations<.*?>([\d.,]+)<", html, re.S)
    assert tile is not None
    assert tile[1] == "28"


@pytest.mark.slow
def test_a_long_search_stays_small_and_keeps_its_front(tmp_path, monkeypatch):
    monkeypatch.setattr("tune.results.page._MAX_TRIALS", 8)
    result = write_search(tmp_path / "run", trials=20)
    html = search_page(result)
    rows = cells(html, "trials")
    assert len(rows) == len({*result.front["trial"], 0, 1}) >= 8
    assert "dominated trials are left out here" in html
    assert {int(row[0]) for row in rows} == {*result.front["trial"], 0, 1}


@pytest.mark.slow
def test_a_page_that_cannot_be_made_does_not_fail_the_search(tmp_path, monkeypatch):
    def fail(*arguments: object) -> str:
        raise RuntimeError("a broken report")

    monkeypatch.setattr("tune.ask_tell.search_page", fail)
    with pytest.warns(UserWarning, match=r"report\.html could not be written \(a broken report\)"):
        result = write_search(tmp_path / "run")
    assert len(result.front)
    assert Path(RunDirectory(tmp_path / "run").front_plot).is_file()
