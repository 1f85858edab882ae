"""The report of any directory: a search, a comparison, a run or an evaluation."""

from __future__ import annotations

import time
from pathlib import Path

from cluster.storage.mirror import Mirror
from cluster.storage.uri import is_uri
from ofmu.reports.page import write_page
from ofmu.reports.run import run_page, write_run_page
from ofmu.run_files import HISTORY, METRICS, PRUNED
from tune.compare.directory import SUMMARY as COMPARE_SUMMARY
from tune.compare.page import comparison_page
from tune.compare.result import ComparisonResult
from tune.results.page import search_page
from tune.results.report import write_plot
from tune.results.result import SearchResult
from tune.rundir.kind import kind_of
from tune.rundir.search_files import REFERENCE, STUDY, SUMMARY

_WATCHED = (STUDY, SUMMARY, REFERENCE, COMPARE_SUMMARY, METRICS, HISTORY, PRUNED)
"""Files whose change changes a page."""
_URI_PAUSE = 20
"""Seconds after which a page of a search at a URI is made again."""


def make_page(directory: str | Path, *, live: bool = False) -> str:
    """Return the page of what a directory holds, finished or not.

    Args:
        directory: a search's directory or URI, or the directory of a comparison, a run or an evaluation.
        live: whether the page asks its server for changes.

    Raises:
        RunError: the directory holds nothing of these, a search without a finished trial, or an unfinished comparison.
    """
    kind = kind_of(directory)
    if kind == "search":
        return search_page(SearchResult.load(directory), live=live)
    if kind == "comparison":
        return comparison_page(ComparisonResult.load(directory), live=live)
    return run_page(directory, live=live)


def write_report(directory: str | Path) -> Path:
    """Write ``report.html`` of what a directory holds, and of a search its plot as well. Return the page's path.

    The files of a search at a URI are copied to the URI.

    Args:
        directory: see :func:`make_page`.

    Raises:
        RunError: see :func:`make_page`; or no trial of the search is complete; or another ``report.html`` is there.
        StorageError: the disk refuses the write.
    """
    kind = kind_of(directory)
    if kind == "search":
        result = SearchResult.load(directory)
        result.require_front()
        plot, page = write_plot(result), write_page(search_page(result), result.run_dir)
        if result.uri is not None:
            for path in (plot, page):
                Mirror(result.uri, result.run_dir).push_file(path.name)
        return page
    if kind == "comparison":
        comparison = ComparisonResult.load(directory)
        return write_page(comparison_page(comparison), comparison.run_dir)
    return write_run_page(directory)


def page_version(directory: str | Path) -> str:
    """Return a text that changes when the page of a directory may have changed."""
    if is_uri(directory):
        return str(int(time.time() // _URI_PAUSE))
    stamps = []
    for name in _WATCHED:
        path = Path(directory) / name
        if path.is_file():
            stat = path.stat()
            stamps.append(f"{name} {stat.st_mtime_ns} {stat.st_size}")
    return "\n".join(stamps)
