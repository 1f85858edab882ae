"""``ofmu jobs``: the jobs that a cluster knows."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cluster.jobs.server import Job

COLUMNS = ("id", "status", "started", "ran", "command")


@click.command("jobs")
@click.option("--address", metavar="URL", help="The cluster's job server; default: $RAY_ADDRESS, else this machine.")
def jobs_command(address: str | None) -> None:
    """List the jobs of a cluster, the oldest first."""
    from cluster.jobs.server import JobServer

    server = JobServer(address)
    jobs = server.jobs()
    if not jobs:
        click.echo(f"no jobs on {server.address}")
        return
    rows = [_cells(job) for job in jobs]
    if sys.stdout.isatty():
        _print_table(rows)
        return
    widths = [max(len(row[column]) for row in (COLUMNS, *rows)) for column in range(len(COLUMNS))]
    for row in (COLUMNS, *rows):
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _cells(job: Job) -> tuple[str, ...]:
    command = job.command.removeprefix("python -m ")
    if job.started is None:
        return job.id, job.status.lower(), "–", "–", command
    started = datetime.fromtimestamp(job.started).strftime("%Y-%m-%d %H:%M:%S")
    # the cluster's clock and this machine's may differ, and either may be set back
    seconds = max(int((job.ended or time.time()) - job.started), 0)
    ran = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return job.id, job.status.lower(), started, ran, command


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for column in COLUMNS:
        table.add_column(column, overflow="fold", no_wrap=column != "command")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)
