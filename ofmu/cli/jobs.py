"""``ofmu jobs``: the jobs of a cluster."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

import click

from ofmu.cli.params import address_option
from ofmu.io.console_table import Column, print_table

if TYPE_CHECKING:
    from cluster.jobs.server import Job

_COLUMNS = (*(Column(name, wrap=False) for name in ("id", "status", "started", "ran")), Column("command"))


@click.command("jobs")
@address_option
def jobs_command(address: str | None) -> None:
    """List the jobs of a cluster, the oldest first."""
    from cluster.jobs.server import JobServer

    server = JobServer(address)
    jobs = server.jobs()
    if not jobs:
        click.echo(f"no jobs on {server.address}")
        return
    print_table(_COLUMNS, [_cells(job) for job in jobs])


def _cells(job: Job) -> tuple[str, ...]:
    command = job.command.removeprefix("python -m ")
    if job.started is None:
        return job.id, job.status.lower(), "–", "–", command
    started = datetime.fromtimestamp(job.started).strftime("%Y-%m-%d %H:%M:%S")
    # The clocks of the cluster and of this machine may differ, so the difference may be negative.
    seconds = max(int((job.ended or time.time()) - job.started), 0)
    ran = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return job.id, job.status.lower(), started, ran, command
