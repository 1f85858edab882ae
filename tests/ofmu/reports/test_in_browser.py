"""Pages of runs in a real browser."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from browser import Browser, open_at
from ofmu.reports.run import run_page, write_run_page
from ofmu.reports.server import PageServer
from report_runs import SCRIPT, serving, write_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return write_run_page(write_run(folder / "run", question=SCRIPT, answers=SCRIPT, more_metrics={"$$x$$": 1.0}))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "mobile"), [(1200, False), (375, True)])
def test_a_page_opens_without_errors_and_requests(browser: Browser, page, dark, width, mobile):
    open_at(browser, page, width, mobile=mobile, dark=dark)
    assert browser.run("document.title").startswith("OFMU on generated")
    drawn = browser.run("Object.values(Bokeh.index).every((view) => view.el.getBoundingClientRect().width > 200)")
    assert drawn
    assert browser.run("getComputedStyle(document.querySelector('.canvas')).overflowY") == "hidden"
    assert page.stat().st_size < 5_000_000


def test_text_of_rows_stays_text(browser: Browser, page):
    browser.open(page)
    assert browser.run("document.querySelector('.answer h4').textContent") == SCRIPT
    assert browser.run("document.images.length") == 0


def test_a_legend_hides_its_series(browser: Browser, page):
    browser.resize(1200, 900)
    browser.open(page)
    losses = "Bokeh.index[JSON.parse(document.getElementById('charts').textContent).losses.root_id].model"
    series = f"[...{losses}.references()].filter((model) => model.name === 'series0')"
    assert browser.run(f"{series}.filter((model) => model.visible === false).length") == 0
    browser.run("document.querySelector('.series').focus()")
    browser.press("Enter")
    assert browser.run("document.querySelector('.series').getAttribute('aria-pressed')") == "false"
    assert browser.run(f"{series}.filter((model) => model.visible === false).length") == 2


def test_the_page_changes_its_colours_with_the_system(browser: Browser, page):
    color = """JSON.stringify([...Object.values(Bokeh.index)[0].model.references()]
      .find((model) => model.type.endsWith('Axis')).major_label_text_color)"""
    browser.media(dark=False)
    browser.open(page)
    light, background = browser.run(color), browser.run("getComputedStyle(document.body).backgroundColor")
    browser.media(dark=True)
    browser.wait_for(f"{color} !== '{light}'")
    assert browser.run("getComputedStyle(document.body).backgroundColor") != background


def test_everything_has_a_name_for_a_screen_reader(browser: Browser, page):
    browser.open(page)
    parts = "button, [role=img], [role=region], section, summary, table"
    unnamed = """.filter((part) => !(part.getAttribute('aria-label') || part.getAttribute('aria-labelledby')
      || part.textContent.trim())).length"""
    assert browser.run(f"[...document.querySelectorAll('{parts}')]{unnamed}") == 0
    heads = browser.run("[...document.querySelectorAll('h1,h2,h3,h4,h5')].map((part) => Number(part.tagName[1]))")
    assert heads[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(heads))
    assert browser.run("document.documentElement.lang") == "en"


def test_a_printed_page_is_light_and_whole(browser: Browser, page):
    browser.media(dark=True, medium="print")
    browser.open(page)
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('.copy')).display") == "none"
    assert browser.pdf().startswith(b"%PDF")
    browser.media()


def test_a_live_page_asks_its_server_only(browser: Browser, tmp_path):
    directory, version = write_run(tmp_path / "run"), ["1"]
    with serving(PageServer(lambda: run_page(directory, live=True), lambda: version[-1])) as url:
        browser.open(url)
        browser.wait_for("performance.getEntriesByName(location.origin + '/version').length > 0")
        assert set(browser.requests()) == {url, f"{url}version"}
        browser.run("window.before = true")
        version.append("2")
        browser.wait_for("window.before === undefined && document.readyState === 'complete'")
        assert browser.errors() == []
    browser.wait_for("document.getElementById('live').textContent === 'the server has ended'")
