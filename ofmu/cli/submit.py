"""``ofmu submit``: run a command of ``ofmu`` as a job on a Ray cluster."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import click

from ofmu.cli.logs import follow_job, later
from ofmu.errors import ConfigError, nearest_name

SUBMITTED = ("search", "compare", "unlearn", "prepare", "evaluate", "report", "export", "doctor")
"""The commands that make sense on the cluster."""
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_WRITES = {
    "search": ("--run-dir", "--resume"),
    "compare": ("--run-dir", "--resume"),
    "unlearn": ("--output",),
    "export": ("--output",),
}


@click.command("submit", context_settings={"allow_interspersed_args": False})
@click.option("--address", metavar="URL", help="The cluster's job server; default: $RAY_ADDRESS, else this machine.")
@click.option("--follow", is_flag=True, help="Show the job's output until it is over, and exit with its status.")
@click.option(
    "--env", "environment", multiple=True, metavar="NAME[=VALUE]", help="A variable of the job's environment."
)
@click.option("--working-dir", default=".", type=FOLDER, metavar="DIR", help="What to upload; default: this directory.")
@click.option("--include", multiple=True, metavar="NAME", help="Upload what is left out by default, such as data.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave this out too, as in a .gitignore.")
@click.option("--driver-cpus", default=0.0, help="CPUs for the command itself; default: none, on the head node.")
@click.option("--driver-gpus", default=0.0, help="GPUs for the command itself, which prepares target and reference.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGUMENTS]...")
def submit_command(
    address: str | None,
    follow: bool,
    environment: tuple[str, ...],
    working_dir: Path,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    driver_cpus: float,
    driver_gpus: float,
    command: tuple[str, ...],
) -> None:
    """Upload the working directory and run COMMAND (such as: search mine.yaml --run-dir /shared/run) on a cluster.

    Data, run directories, weights, .git, virtual environments, caches and .env files stay here. --env takes a
    variable's value from this shell, or the one that is given; values are never printed.
    """
    if command[0] not in SUBMITTED:
        raise ConfigError(f"'{command[0]}' is no command to submit: {nearest_name(command[0], SUBMITTED)}")
    _warn_of_lost_results(command)

    # Imported here: Ray takes seconds, and the command line's start must not.
    from cluster.jobs.server import JobServer, chosen_environment
    from cluster.jobs.working_dir import check_missing_files, plan_package

    variables = chosen_environment(environment)
    package = plan_package(working_dir, include=include, exclude=exclude)
    check_missing_files(package, command)
    server = JobServer(address)
    job_id = server.submit(command, package, environment=variables, cpus=driver_cpus, gpus=driver_gpus)
    size = f"{len(package.sizes)} files, {package.bytes / 2**20:.1f} MiB"
    click.echo(f"{job_id} is submitted to {server.address} with {package.root} ({size})", err=follow)
    if follow:
        follow_job(server, job_id, address)
    else:
        click.echo(f"{later('logs', job_id, address)} --follow shows it; {later('stop', job_id, address)} ends it")


def _warn_of_lost_results(command: Sequence[str]) -> None:
    """Say so where the results would lie in the job's copy of the working directory, which Ray deletes in time."""
    options = _WRITES.get(command[0], ())
    places = [
        word.partition("=")[2] or following
        for word, following in zip(command, (*command[1:], ""), strict=True)
        if word.partition("=")[0] in options
    ]
    if options and not any(place.startswith("/") or "://" in place for place in places):
        warnings.warn(
            f"the job writes into its own copy of the working directory, which Ray deletes: give {options[0]} an "
            "absolute path on storage that every node sees",
            stacklevel=2,
        )
