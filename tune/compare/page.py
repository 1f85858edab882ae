"""The page of a finished comparison."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ofmu.errors import OfmuError
from ofmu.reports.charts import Chart, bar_chart
from ofmu.reports.numbers import MISSING, duration, number
from ofmu.reports.page import render
from ofmu.run_files import REPORT, RunFiles
from tune.compare.charts import fronts_chart, hypervolume_chart, mean_and_range, values_of
from tune.compare.directory import CompareDirectory
from tune.compare.result import ComparisonResult
from tune.compare.retain import retain_sentences, retain_table
from tune.compare.summary import MethodSummary, Summary
from tune.compare.tables import EXACTNESS, compact_table, explanation, test_table, verdict
from tune.rundir.seed_runs import PointRuns, SeedRun

_FOLDER = Path(__file__).parent / "templates"


def comparison_page(result: ComparisonResult, *, live: bool = False) -> str:
    """Return the page of a comparison. ``live``: whether the page asks its server for changes."""
    summary, home = result.summary, CompareDirectory(result.run_dir)
    charts = [fronts_chart(summary), hypervolume_chart(summary), _rank_chart(summary)]
    header, *rows = compact_table(summary)
    tests_header, *tests = test_table(summary)
    retain_header, *retain_rows = retain_table(summary)
    return render(
        "comparison.html.j2",
        _FOLDER,
        charts=charts,
        live=live,
        title=f"Comparison in {result.run_dir.name} · ofmu",
        kind="Comparison",
        heading=f"{len(summary.methods)} methods: {', '.join(method.name for method in summary.methods)}",
        sub=str(result.run_dir),
        verdict=verdict(summary),
        explanation=explanation(summary),
        tiles=_tiles(summary),
        plots={chart.name: chart for chart in charts},
        columns=[_column(name) for name in header],
        rows=[{"cells": [(text, _sort_value(text)) for text in row]} for row in rows],
        test_columns=[_column(name) for name in tests_header],
        exactness=EXACTNESS,
        tests=[{"cells": [(text, _sort_value(text)) for text in row]} for row in tests],
        retain=retain_sentences(summary) if summary.retain_draws else "",
        retain_columns=[_column(name) for name in retain_header],
        retain_rows=[{"cells": [(text, _sort_value(text)) for text in row]} for row in retain_rows],
        point_columns=_point_columns(summary),
        points=[_point_row(method, point, summary, home) for method in summary.methods for point in method.points],
        importances=[(method.name, _importances(method)) for method in summary.methods],
        searches=[_search_link(method, result.run_dir) for method in summary.methods],
        command=shlex.join(summary.command),
        resume=shlex.join(_resume(home)),
    )


def _resume(home: CompareDirectory) -> list[str]:
    """Return the words of the command that continues the comparison."""
    # A finished comparison has its page even if its config is missing or damaged.
    with suppress(OfmuError):
        return home.resume_words(home.read_mapping())
    return home.resume_words({})


def _rank_chart(summary: Summary) -> Chart:
    return bar_chart(
        {method.name: method.mean_rank for method in summary.methods},
        name="ranks",
        title="Mean rank",
        note="Over all pairs of seed and level. Rank 1 is the best.",
        x_label="mean rank (lower is better)",
    )


def _tiles(summary: Summary) -> list[dict[str, str]]:
    runs = [run for method in summary.methods for run in method.runs]
    failed = sum(run.metrics is None for run in runs)
    best = summary.best["levels"]
    return [
        {"label": "Significantly best", "value": best or "none", "note": f"at corrected p < {summary.significance:g}"},
        {"label": "Seeds", "value": str(len(summary.seeds)), "note": ", ".join(map(str, summary.seeds))},
        {"label": "Runs on other seeds", "value": str(len(runs)), "note": f"{failed} failed" if failed else ""},
        {"label": "Budget", "value": summary.budget, "note": "equal for all methods"},
        {"label": "Time of all trials", "value": duration(summary.seconds), "note": ""},
    ]


def _column(label: str, *, numeric: bool = False, command: bool = False) -> dict[str, Any]:
    return {"label": label, "numeric": numeric, "command": command, "hint": ""}


def _sort_value(text: str) -> str:
    """Return what a cell of text is sorted by: its first number if it starts with one, else the text."""
    first = text.removesuffix("*").partition(" ")[0]
    try:
        return str(float(first))
    except ValueError:
        return "" if text == MISSING else text


def _point_columns(summary: Summary) -> list[dict[str, Any]]:
    names = [_column(name, numeric=True) for name in summary.objectives]
    return [
        _column("point"),
        _column("method"),
        *names,
        _column("seeds", numeric=True),
        _column("settings"),
        _column("left out"),
        _column("command", command=True),
    ]


def _point_row(method: MethodSummary, point: PointRuns, summary: Summary, home: CompareDirectory) -> dict[str, Any]:
    names = list(summary.objectives)
    runs = values_of(point, names)
    cells: list[tuple[str, Any]] = [(f"{method.name} {point.trial}",) * 2, (method.name, method.name)]
    if len(runs):
        cells += [
            (mean_and_range(column, name), float(column.mean())) for name, column in zip(names, runs.T, strict=True)
        ]
    else:
        cells += [(MISSING, "")] * len(names)
    settings = ", ".join(f"{key.partition('.')[2]} {number(value)}" for key, value in point.settings.items())
    reasons = "; ".join(dict.fromkeys(reason for run in point.runs if (reason := _why_left_out(run))))
    cells += [(str(len(runs)), len(runs)), (settings, settings), (reasons, reasons)]
    cells.append((_command(point, home.path), ""))
    return {"cells": cells}


def _why_left_out(run: SeedRun) -> str | None:
    """Return why a run counts nowhere; None for a run that counts."""
    return run.reason if run.violation is None else f"seed {run.seed} violates the constraints: {run.violation}"


def _command(point: PointRuns, home: Path) -> str:
    """Return the command that makes the point's first complete run again; empty without its config."""
    for run in point.runs:
        config = RunFiles(home / run.directory).config
        if run.metrics is not None and config.is_file():
            return shlex.join(["ofmu", "unlearn", str(config), "--output", "DIR"])
    return ""


def _importances(method: MethodSummary) -> str:
    shares: Sequence[str] = [f"{name.partition('.')[2]} {share:.2f}" for name, share in method.importances.items()]
    return ", ".join(shares) or "too few trials"


def _search_link(method: MethodSummary, home: Path) -> dict[str, str]:
    """Return the name and the place of a method's search. The place is empty without a page there."""
    place = f"{method.search}/{REPORT}"
    return {"name": method.name, "title": method.title, "place": place if (home / place).is_file() else ""}
