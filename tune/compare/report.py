"""The reports of a comparison: compare.json, compare.csv, compare.md and compare.png."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from io import BytesIO

from ofmu.io.files import write_bytes, write_text
from tune.compare.directory import PLOT, TABLE, TEXT
from tune.compare.result import ComparisonResult
from tune.compare.summary import Summary
from tune.compare.tables import compact_table, test_table, verdict


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
        "## What decides whether a trial reaches the front",
        _pipe_table(_importances(summary)),
    ]
    return "\n\n".join(parts) + "\n"


def explanation(summary: Summary) -> str:
    """Return how to read the table: the runs, the levels, the test, and the limits of the test."""
    seeds = ", ".join(str(seed) for seed in summary.seeds)
    forgetting, utility = list(summary.objectives)[:2]
    models = f"The untouched target: {_values(summary.target)}."
    if summary.reference:
        models += f" The retrained reference: {_values(summary.reference)}."
    budget = {"trials": "number of trials"}.get(summary.budget, "number of gradient evaluations")
    return (
        f"Every method had its own search with the same {budget}. The points of its front, without the untouched "
        f"target, were run again from the same prepared target on {len(summary.seeds)} other seeds ({seeds}), and all "
        f"numbers are of those runs. {models} The value of {utility} at a level of {forgetting}, and the reverse, is "
        "the best value of a run that satisfies the level, averaged over the seeds, without interpolation. A dash says "
        "that no run satisfies the level; (1/3) says that only runs of one seed of three do. Ranks and p are over all "
        "pairs of seed and level. A level that a method does not reach counts as the worst possible value. p comes "
        "from an exact sign-flip permutation test, and is corrected by Holm's method for all pairs of methods. Levels "
        "that the same two runs meet count once. Runs of one seed are not independent, so p is somewhat too small. "
        "Bold and * therefore also require that a method is better on every single seed. The seeds show how much runs "
        "differ, not what another search would have found. Hypervolume is tested over the seeds only: with "
        f"{len(summary.seeds)} seeds, no p can be below {2.0 ** (1 - len(summary.seeds)):.2g}, and bootstrap intervals "
        "of so few values are too narrow. Peak memory is that of the process that made a method's runs, one after the "
        "other."
    )


def _values(objectives: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in objectives.items())


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
