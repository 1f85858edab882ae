"""``ofmu logs``: the output of a job."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ofmu.cli.params import address_option

if TYPE_CHECKING:
    from cluster.jobs.server import JobServer


@click.command("logs")
@click.argument("job_id", metavar="ID")
@address_option
@click.option("--follow", is_flag=True, help="Print new output until the job is over, and exit with its status.")
def logs_command(job_id: str, address: str | None, follow: bool) -> None:
    """Print the output of the job ID. Ctrl-C does not stop the job."""
    from cluster.jobs.server import JobServer

    server = JobServer(address)
    if follow:
        follow_job(server, job_id, address)
    else:
        _write(server.logs(job_id))


def follow_job(server: JobServer, job_id: str, address: str | None) -> None:
    """Print a job's output until it is over, and exit with its status. Ctrl-C does not stop the job.

    Raises:
        SystemExit: always.
    """
    try:
        job = server.follow(job_id, _write)
    except KeyboardInterrupt:
        click.echo(
            f"\n{job_id} goes on: {job_command('logs', job_id, address)} --follow shows it again, "
            f"{job_command('stop', job_id, address)} stops it",
            err=True,
        )
        raise SystemExit(130) from None
    how = f" with exit status {job.exit_status}" if job.status == "FAILED" else ""
    click.echo(f"{job_id} {job.status.lower()}{how}", err=True)
    if job.exit_status and job.exit_code is None and job.message:
        # The command never ran, so the log does not contain the reason.
        click.echo(job.message, err=True)
    raise SystemExit(job.exit_status)


def job_command(command: str, job_id: str, address: str | None) -> str:
    """Return the command line that runs ``ofmu <command>`` on this job."""
    return f"ofmu {command} {job_id}" + (f" --address {address}" if address else "")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
