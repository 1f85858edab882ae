"""``ofmu runs``: list run directories with their state, result and cost."""

from __future__ import annotations

from pathlib import Path

import click

from ofmu.cli.params import Folder


@click.command("runs")
@click.argument("folder", type=Folder(), default="runs")
def runs_command(folder: Path) -> None:
    """List the searches, comparisons, runs and evaluations below FOLDER (default: runs)."""
    # Optuna and pandas are slow to import, and the help does not need them.
    from ofmu.io.console_table import Column, print_table
    from ofmu.reports.numbers import MISSING, big_number, duration
    from tune.run_list import list_runs

    entries = list_runs(folder)
    if not entries:
        click.echo(f"There is no run directory below {folder}")
        return
    columns = [
        Column("directory", overflow="fold"),
        Column("kind"),
        Column("state"),
        Column("method"),
        Column("result"),
        Column("gradient evaluations", justify="right"),
        Column("time", justify="right"),
        Column("started"),
    ]
    rows = [
        (
            str(entry.directory),
            entry.kind,
            entry.state,
            entry.method or MISSING,
            entry.result or MISSING,
            big_number(entry.gradient_evaluations),
            duration(entry.seconds),
            entry.started.replace("T", " ")[:16] or MISSING,
        )
        for entry in entries
    ]
    print_table(columns, rows, boxed=False)
