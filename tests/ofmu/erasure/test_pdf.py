from __future__ import annotations

import os
from pathlib import Path

import pytest

from browser import Browser, open_at
from evidence_records import record
from ofmu.erasure import pdf
from ofmu.erasure.evidence_files import write_evidence
from ofmu.erasure.page import evidence_page
from ofmu.erasure.verify import read_intact
from ofmu.errors import StorageError

needs_browser = pytest.mark.skipif(pdf.browser() is None, reason="there is no Chromium on this machine")


@pytest.mark.slow
@needs_browser
def test_the_page_is_printed(tmp_path: Path):
    write_evidence(record(), tmp_path / "evidence", None)
    assert (tmp_path / "evidence" / "report.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(read_intact(tmp_path / "evidence").files) == ["report.html", "report.pdf"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "mobile", "dark"), [(1200, False, False), (390, True, True)])
def test_the_page_opens_without_errors_and_shows_markup_as_text(
    browser: Browser, tmp_path: Path, width: int, mobile: bool, dark: bool
):
    page = tmp_path / "report.html"
    page.write_text(evidence_page(record(show_rows=True)), encoding="utf-8")
    open_at(browser, page, width, mobile=mobile, dark=dark)
    assert browser.run("document.querySelector('details em').textContent") == "In <b>Porto</b> & so on."
    assert browser.run("document.querySelectorAll('details b').length") == 0
    assert browser.run("document.querySelector('#metrics tbody td').textContent") == "0.9"


def test_without_a_browser_nothing_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not pdf.print_to_pdf(tmp_path / "page.html", tmp_path / "page.pdf")


def test_a_browser_that_makes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "page.html").write_text("<p>x</p>")
    with pytest.raises(StorageError, match=r"made no page\.pdf"):
        pdf.print_to_pdf(tmp_path / "page.html", tmp_path / "page.pdf")
