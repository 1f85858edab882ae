from __future__ import annotations

import re
from pathlib import Path

import pytest

from browser import Browser
from ofmu.reports.page import write_page
from report_runs import SCRIPT
from tune.compare.directory import CompareDirectory
from tune.compare.page import comparison_page
from tune.compare.result import ComparisonResult
from tune.compare.tables import compact_table, verdict
from tune.space.constraints import Limit

GOOD = [[(0.2, 0.5), (0.22, 0.52), (0.21, 0.51)], [(0.4, 0.68)] * 3, [(0.6, 0.77)] * 3]
POOR = [[(d + 0.1, u - 0.1) for d, u in seeds] for seeds in GOOD]


@pytest.fixture
def result(summarised, tmp_path) -> ComparisonResult:
    methods = {"good": GOOD, "poor": [*POOR, [(0.1, 0.1), None, (0.1, 0.1)], [None] * 3], "none": []}
    return ComparisonResult(tmp_path, summarised(methods))


@pytest.mark.slow
def test_the_page_has_every_number_of_the_tables(result):
    html = comparison_page(result)
    assert verdict(result.summary) in html
    for text in {cell for row in compact_table(result.summary) for cell in row}:
        assert text.replace("<", "&lt;") in html, text
    assert "the loss became NaN" in html
    assert re.search(r"0\.21 \(0\.2 … 0\.22\)", html), "a point's mean and range over the seeds"
    assert html.count("ofmu compare --resume") >= 1


@pytest.mark.slow
def test_a_point_names_its_runs_that_violate_a_constraint_and_leaves_them_out(summarised, tmp_path):
    points = {"mixed": [[(0.2, 0.5), (0.05, 0.1), (0.4, 0.7)]], "broken": [[(0.05, 0.1)] * 3]}
    result = ComparisonResult(tmp_path, summarised(points, limits=(Limit("model_utility", "min", 0.4),)))
    html = comparison_page(result)
    # The row of the table, and the tooltip of the chart, which is JSON.
    assert html.count("0.3 (0.2 … 0.4)") == html.count("0.3 (0.2 \\u2026 0.4)") == 1
    assert "seed 2 violates the constraints: model_utility 0.1, not ≥ 0.4" in html
    assert "0.05 (0.05" not in html
    assert "Runs that violate a constraint are left out." in html


@pytest.mark.slow
def test_a_link_to_a_search_needs_its_page(result, tmp_path):
    assert '<a href="searches' not in comparison_page(result)
    place = tmp_path / "searches" / "good"
    place.mkdir(parents=True)
    (place / "report.html").write_text("x")
    assert '<a href="searches/good/report.html">' in comparison_page(result)


@pytest.mark.slow
def test_the_command_for_more_seeds_allows_the_code_that_the_stored_config_names(result, tmp_path):
    def commands():
        return re.findall(r"ofmu compare --resume [^<]*? compare\.seeds=S", comparison_page(result))

    plain = f"ofmu compare --resume {tmp_path} compare.seeds=S"
    assert set(commands()) == {plain}
    method = {"name": "mine", "module": "no_such_module", "strength": 2}
    CompareDirectory(tmp_path).write_mapping({"method": method}, replace_environment=False)
    assert set(commands()) == {plain.replace(" compare.", " --allow-code compare.")}
    (tmp_path / "config.yaml").write_text("{broken")
    assert set(commands()) == {plain}


@pytest.mark.slow
def test_text_of_the_comparison_is_escaped(summarised, tmp_path):
    html = comparison_page(ComparisonResult(tmp_path, summarised({SCRIPT: GOOD, "other": POOR})))
    assert "<script>document.title" not in html


@pytest.mark.slow
@pytest.mark.parametrize(("width", "mobile"), [(1200, False), (375, True)])
def test_the_page_in_a_browser(browser: Browser, result, tmp_path: Path, width, mobile):
    page = write_page(comparison_page(result), tmp_path)
    browser.resize(width, 900, mobile=mobile)
    browser.media(dark=mobile)
    browser.open(page)
    assert browser.errors() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.run("document.querySelectorAll('#points thead button')[2].click()")
    values = browser.run("[...document.querySelectorAll('#points tbody tr')].map((row) => row.cells[2].dataset.value)")
    numbers = [float(value) for value in values if value]
    assert numbers == sorted(numbers)
    assert values[-1] == "", "the point whose runs all failed"
    browser.run("document.querySelector('.series').click()")
    assert browser.errors() == []
