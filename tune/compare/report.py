"""The reports of a comparison: compare.json, compare.csv, compare.md and compare.png."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from io import BytesIO

from ofmu.io.files import write_bytes, write_text
from tune.compare.directory import PLOT, TABLE, TEXT
from tune.compare.result import ComparisonResult
from tune.compare.retain import retain_sentences, retain_table
from tune.compare.summary import Summary
from tune.compare.tables import compact_table, explanation, test_table, verdict


def write_reports(result: ComparisonResult) -> None:
    """Write all four reports. Each file is replaced in one step; compare.json is written last.

    Raises:
        StorageError: the disk refuses a write.
    """
    write_text(result.run_dir / TABLE, result.table.to_csv(index=False))
    write_text(result.run_dir / TEXT, markdown(result.summary))
    picture = BytesIO()
    result.plot(picture)
    write_bytes(result.run_dir / PLOT, picture.getvalue())
    result.save()


def markdown(summary: Summary) -> str:
    """Return the table, the explanation of the table, and the tests, as Markdown."""
    names = ", ".join(
        f"{name} ({'lower' if way == 'min' else 'higher'} is better)" for name, way in summary.objectives.items()
    )
    parts = [
        f"# {len(summary.methods)} methods compared",
        f"`{shlex.join(summary.command)}`",
        f"Objectives: {names}. {verdict(summary)}",
        _pipe_table(_bold_best(compact_table(summary))),
        explanation(summary),
        "## Tests",
        _pipe_table(test_table(summary)),
        *_retain_section(summary),
        "## What decides whether a trial reaches the front",
        _pipe_table(_importances(summary)),
    ]
    return "\n\n".join(parts) + "\n"


def _retain_section(summary: Summary) -> list[str]:
    if not summary.retain_draws:
        return []
    return ["## Which retain rows were used", retain_sentences(summary), _pipe_table(retain_table(summary))]


def _bold_best(rows: list[list[str]]) -> list[list[str]]:
    return [[f"**{cell.removesuffix('*')}**" if cell.endswith("*") else cell for cell in row] for row in rows]


def _importances(summary: Summary) -> list[list[str]]:
    rows = [["method", "share of each searched setting (PED-ANOVA)"]]
    for method in summary.methods:
        shares = ", ".join(f"{name.partition('.')[2]} {share:.2f}" for name, share in method.importances.items())
        rows.append([method.name, shares or "too few trials"])
    return rows


def _pipe_table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
