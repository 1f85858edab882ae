"""The files a comparison leaves: compare.json, compare.csv, compare.md and compare.png."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

from ofmu.io.files import storage_errors, write_text
from tune.compare.result import ComparisonResult, Summary
from tune.compare.tables import compact_table, test_table, verdict


def write_reports(result: ComparisonResult) -> None:
    """Write all four, each whole or not at all; compare.json last, so that its presence means complete.

    Raises:
        StorageError: the disk refuses a write.
    """
    write_text(result.run_dir / "compare.csv", result.table.to_csv(index=False))
    write_text(result.run_dir / "compare.md", markdown(result.summary))
    path, partial = result.run_dir / "compare.png", result.run_dir / "compare.partial.png"
    with storage_errors(path):
        result.plot(partial)
        os.replace(partial, path)
    result.save()


def markdown(summary: Summary) -> str:
    """Return the table, how to read it, and the tests behind it, as Markdown."""
    names = ", ".join(f"{name} ({'lower' if way == 'min' else 'higher'} is better)" for name, way in _both(summary))
    parts = [
        f"# {len(summary.methods)} methods compared",
        f"`{shlex.join(summary.command)}`",
        f"Objectives: {names}. {verdict(summary)}",
        _pipes(_bold(compact_table(summary))),
        reading(summary),
        "## Tests",
        _pipes(test_table(summary)),
        "## What decides whether a trial reaches the front",
        _pipes(_importances(summary)),
    ]
    return "\n\n".join(parts) + "\n"


def reading(summary: Summary) -> str:
    """Return how the table is to be read: what was run, where levels lie, which test and its limits."""
    seeds = ", ".join(str(seed) for seed in summary.seeds)
    forgetting, utility = list(summary.objectives)[:2]
    landmarks = f"The untouched target: {_values(summary.target)}."
    if summary.reference:
        landmarks += f" The retrained reference: {_values(summary.reference)}."
    budget = {"trials": "the same number of trials"}.get(summary.budget, "the same gradient evaluations")
    return (
        f"Every method had its own search at {budget}; the points of its front (the untouched target left out) were "
        f"run again from the same prepared target on {len(summary.seeds)} other seeds ({seeds}), and all numbers "
        f"are of those runs. {landmarks} {utility} at a level of {forgetting}, and the "
        "reverse, is the best value that a run had which satisfies the level, averaged over seeds, without "
        "interpolation; – where no run did, (1/3) where those of one seed of three did. Ranks and p are over all "
        "pairs of seed and level, a level not reached counting as the worst possible value: an exact sign-flip "
        "permutation test, corrected by Holm's method for all pairs of methods; levels that the same two runs meet "
        "count once. Runs of one seed are not independent, so p is somewhat too small; bold and * therefore ask in "
        "addition that a method be better on every single seed. The seeds show what runs differ by, not what another "
        f"search would have found. Over {len(summary.seeds)} seeds alone, as for hypervolume, no p can be below "
        f"{2.0 ** (1 - len(summary.seeds)):.2g}, and bootstrap intervals of so few values are too narrow. Peak "
        "memory is that of the process that made a method's runs, one after the other."
    )


def _values(objectives: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in objectives.items())


def _both(summary: Summary) -> list[tuple[str, str]]:
    return list(summary.objectives.items())


def _bold(rows: list[list[str]]) -> list[list[str]]:
    return [[f"**{cell.removesuffix('*')}**" if cell.endswith("*") else cell for cell in row] for row in rows]


def _importances(summary: Summary) -> list[list[str]]:
    rows = [["method", "share of each searched setting (PED-ANOVA)"]]
    for method in summary.methods:
        shares = ", ".join(f"{name.partition('.')[2]} {share:.2f}" for name, share in method.importances.items())
        rows.append([method.name, shares or "too few trials"])
    return rows


def _pipes(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
