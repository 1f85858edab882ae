from __future__ import annotations

import re
import tomllib
import warnings
from datetime import datetime
from pathlib import Path

import pytest

from ofmu.errors import RunError
from ofmu.reports.page import render, write_page, write_page_or_warn
from ofmu.run_files import REPORT, is_report
from report_runs import SCRIPT

ROOT = Path(__file__).resolve().parents[3]


def page(folder: Path, body: str = "{{ text }}", **context: object) -> str:
    (folder / "mine.html.j2").write_text('{% extends "base.html.j2" %}{% block content %}' + body + "{% endblock %}")
    words = {"title": "t", "kind": "k", "heading": "h", "sub": "", "made": ""}
    return render("mine.html.j2", folder, **{**words, "text": "x", **context})


def test_every_text_is_escaped(tmp_path):
    html = page(tmp_path, text=SCRIPT, title=SCRIPT, heading=SCRIPT, sub=SCRIPT, made=SCRIPT)
    assert html.count("&lt;/script&gt;&lt;script&gt;document.title") == 5
    assert "<script>document.title" not in html
    assert "<img" not in html


def test_a_page_says_when_it_was_made(tmp_path):
    (tmp_path / "mine.html.j2").write_text('{% extends "base.html.j2" %}')
    before = datetime.now().astimezone().replace(microsecond=0)
    html = render("mine.html.j2", tmp_path, title="t", kind="k", heading="h", sub="")
    made = re.search(r"Made by ofmu \S* on (\S+)\. This page", html)
    assert made is not None
    assert before <= datetime.fromisoformat(made[1]) <= datetime.now().astimezone()
    assert "on long ago. This page" in page(tmp_path, made="long ago")


def test_a_page_without_charts_is_small(tmp_path):
    html = page(tmp_path)
    assert len(html) < 50_000
    assert "Bokeh" in html, "its own script only names the library"


def test_a_page_may_not_connect_unless_it_is_served(tmp_path):
    assert "connect-src &#39;none&#39;" in page(tmp_path)
    assert "connect-src &#39;self&#39;" in page(tmp_path, live=True)


def test_a_page_is_replaced_but_a_file_of_the_user_is_not(tmp_path):
    path = write_page(page(tmp_path), tmp_path)
    assert is_report(path)
    write_page(page(tmp_path, text="new"), tmp_path)
    assert "new" in path.read_text()
    path.write_text("<h1>my own report</h1>")
    with pytest.raises(RunError, match="not of ofmu"):
        write_page(page(tmp_path), tmp_path)
    assert path.read_text() == "<h1>my own report</h1>"


@pytest.mark.parametrize(
    "error", [RuntimeError("no\nluck"), KeyError("x"), OSError(28, "No space left"), MemoryError()]
)
def test_a_report_that_fails_is_one_warning(tmp_path, error):
    def fail() -> str:
        raise error

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert write_page_or_warn(fail, tmp_path) is None
    (warning,) = caught
    assert str(tmp_path / REPORT) in str(warning.message)
    assert "\n" not in str(warning.message)
    assert "results are complete" in str(warning.message)


def test_an_interruption_is_no_warning(tmp_path):
    def stop() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_page_or_warn(stop, tmp_path)


def test_every_template_is_package_data():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = project["tool"]["setuptools"]["package-data"]
    for package in ("ofmu", "tune"):
        patterns = [re.escape(pattern).replace(r"\*", "[^/]*") for pattern in data[package]]
        for path in (ROOT / package).rglob("templates/*"):
            name = path.relative_to(ROOT / package).as_posix()
            assert any(re.fullmatch(pattern, name) for pattern in patterns), name
