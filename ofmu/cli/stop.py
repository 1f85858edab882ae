"""``ofmu stop``: stop a job."""

from __future__ import annotations

import click

from ofmu.cli.params import address_option


@click.command("stop")
@click.argument("job_id", metavar="ID")
@address_option
def stop_command(job_id: str, address: str | None) -> None:
    """Stop the job ID and wait until it is over. To continue a stopped search, run: search --resume RUN."""
    from cluster.jobs.server import JobServer

    server = JobServer(address)
    before = server.job(job_id)
    if before.is_over:
        click.echo(f"{job_id} is over already: {before.status.lower()}")
        return
    click.echo(f"{job_id} {server.stop(job_id).status.lower()}")
