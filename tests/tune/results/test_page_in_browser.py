"""The page of a search in a real browser: hover, selection, sorting and filtering."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from browser import Browser, open_at
from search_runs import write_search
from tune import AskTell
from tune.results.page import search_page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searches")
    write_search(folder / "run", failure="</script><script>document.title='hacked'</script>")
    return folder / "run" / "report.html"


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.resize(1200, 900)
    browser.media()
    browser.open(page)
    return browser


def position(browser: Browser, trial: int) -> tuple[float, float]:
    """Return the place of a trial's point in the window."""
    browser.run("document.getElementById('front').scrollIntoView({block: 'center'})")
    place = browser.run(
        f"""(() => {{
        const view = Bokeh.index[JSON.parse(document.getElementById('charts').textContent).front.root_id];
        const source = [...view.model.references()].find((model) => model.name === 'points');
        const index = source.data.tip.findIndex((tip) => tip.startsWith('trial {trial},'));
        const box = document.getElementById('front').getBoundingClientRect(), frame = view.frame.bbox;
        return [box.x + view.frame.x_scale.compute(source.data.x[index]),
                box.y + view.frame.y_scale.compute(source.data.y[index])];
        }})()"""
    )
    return place[0], place[1]


def tooltip(browser: Browser) -> str:
    """Return the text of the visible tooltips. They lie in shadow trees."""
    script = """(() => { const found = [];
      const walk = (node) => {
        for (const child of [...node.children, ...(node.shadowRoot ? node.shadowRoot.children : [])]) {
          const shown = child.style?.whiteSpace === 'pre-wrap' && child.getBoundingClientRect().width;
          if (shown) found.push(child.textContent);
          walk(child);
        }
      };
      walk(document.body); return found.join('|'); })()"""
    return str(browser.run(script))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "mobile"), [(1200, False), (375, True)])
def test_a_page_opens_without_errors_and_requests(browser: Browser, page, dark, width, mobile):
    open_at(browser, page, width, mobile=mobile, dark=dark)
    assert "hacked" not in browser.run("document.title")


def test_hover_shows_settings_metrics_and_cost(opened: Browser):
    x, y = position(opened, 5)
    assert tooltip(opened) == ""
    opened.move(x - 3, y)
    opened.move(x, y)
    end = time.monotonic() + 10
    while not (text := tooltip(opened)) and time.monotonic() < end:
        time.sleep(0.05)
    for words in ("trial 5, sampled", "ks_statistic 0.3958", "inner_lr", "extraction_strength 0.417"):
        assert words in text
    assert "gradient evaluations 50" in text


def test_a_tap_on_a_point_marks_its_row(opened: Browser):
    x, y = position(opened, 5)
    opened.move(x, y)
    opened.click(x, y)
    opened.wait_for("document.querySelectorAll('tr.picked').length === 1")
    assert opened.run("document.querySelector('tr.picked').cells[0].textContent.trim()") == "5"


def test_a_row_is_marked_in_all_charts_by_keyboard(opened: Browser):
    opened.run("document.querySelectorAll('.pick')[4].focus()")
    opened.press("Enter")
    selected = """Object.values(Bokeh.index).flatMap((view) => [...view.model.references()])
      .filter((model) => model.name === 'points').map((source) => [...source.selected.indices])"""
    assert opened.run(selected) == [[4], [4]]
    opened.press("Enter")
    assert opened.run(selected) == [[], []]


def test_a_click_on_a_header_sorts(opened: Browser, page):
    order = "[...document.querySelectorAll('#trials tbody tr')].map((row) => row.cells[4].dataset.value)"
    button = "document.querySelectorAll('#trials thead button')[4]"
    opened.run(f"{button}.focus()")
    opened.press("Enter")
    values = opened.run(order)
    numbers = [float(value) for value in values if value]
    assert numbers == sorted(numbers)
    assert values[len(numbers) :] == ["", ""], "trials without a value stay last"
    assert opened.run(f"{button}.closest('th').getAttribute('aria-sort')") == "ascending"
    opened.run(f"{button}.click()")
    values = opened.run(order)
    assert [float(value) for value in values if value] == sorted(numbers, reverse=True)
    assert values[len(numbers) :] == ["", ""]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("failed", ["11"]),
        ("TARGET", ["0"]),
        ("ks_statistic < 0.2", ["1", "2"]),
        ("ks_statistic<=0.95 role=target", ["0"]),
        ("sampled trial > 8", ["9", "10", "11"]),
        ("nonsense > 3", []),
        ("", [str(number) for number in range(12)]),
    ],
)
def test_the_filter_takes_words_and_comparisons(opened: Browser, text, wanted):
    opened.run(
        f"""(() => {{ const input = document.querySelector('[data-filter]'); input.value = {text!r};
        input.dispatchEvent(new Event('input')); }})()"""
    )
    shown = (
        "[...document.querySelectorAll('#trials tbody tr:not([hidden])')].map((row) => row.cells[0].textContent.trim())"
    )
    assert opened.run(shown) == wanted
    assert opened.run("document.getElementById('trials-count').textContent") == f"{len(wanted)} of 12 rows"


def test_a_running_search_is_followed_and_keeps_what_the_reader_set(browser: Browser, tmp_path):
    from ofmu.reports.server import PageServer
    from report_runs import serving
    from tune import AskTell
    from tune.reports import make_page, page_version

    run = tmp_path / "run"
    with AskTell({"search": {"num_trials": 6}}, run_dir=run) as loop:
        loop.tell(loop.ask(), {"ks_statistic": 0.9, "model_utility": 0.8})
        with serving(PageServer(lambda: make_page(run, live=True), lambda: page_version(run))) as url:
            browser.open(url)
            assert browser.run("document.querySelectorAll('#trials tbody tr').length") == 1
            browser.run("document.querySelectorAll('#trials thead button')[4].click()")
            loop.tell(loop.ask(), {"ks_statistic": 0.4, "model_utility": 0.6})
            browser.wait_for("document.querySelectorAll('#trials tbody tr').length === 2", seconds=30)
            browser.wait_for("document.documentElement.dataset.ready === 'yes'")
            order = "[...document.querySelectorAll('#trials tbody tr')].map((row) => row.cells[0].textContent.trim())"
            assert browser.run(order) == ["1", "0"]
            assert browser.errors() == []


def test_a_thousand_trials_stay_below_five_megabytes(browser: Browser, tmp_path):
    result = write_search(tmp_path / "run", trials=20)
    rows = result.trials
    many = pd.concat([rows[rows["state"] == "complete"]] * 56, ignore_index=True)
    many["trial"] = range(len(many))
    large = replace(result, make_trials=lambda: many, make_front=lambda: result.front)
    path = tmp_path / "large.html"
    path.write_text(search_page(large))
    assert path.stat().st_size < 5_000_000
    browser.open(path)
    assert browser.errors() == []


def test_an_axis_of_bytes_shows_mib(browser: Browser, tmp_path: Path):
    search = {"num_trials": 4, "objectives": {"peak_memory_bytes": "min", "model_utility": "max"}}
    with AskTell({"search": search}, run_dir=tmp_path / "run") as loop:
        while (trial := loop.ask()) is not None:
            size = (200 + 100 * trial.number) * 2**20
            costs = {"gradient_evaluations": 1.0, "seconds": 1.0, "peak_memory_bytes": float(size)}
            loop.tell(trial, {"model_utility": 0.2 * trial.number, "ks_statistic": 0.5, **costs})
        loop.result()
    browser.resize(1200, 900)
    browser.media()
    browser.open(tmp_path / "run" / "report.html")
    assert browser.errors() == []
    script = """(() => { const found = [];
      const walk = (node) => {
        if (node.tagName === 'text') found.push(node.textContent);
        for (const child of [...node.children, ...(node.shadowRoot ? node.shadowRoot.children : [])]) walk(child);
      };
      walk(document.getElementById('front')); return found; })()"""
    ticks = [text for text in browser.run(script) if "iB" in text]
    assert len(ticks) > 1, browser.run(script)
    assert all(tick.removesuffix("MiB").strip().isdigit() for tick in ticks), ticks
