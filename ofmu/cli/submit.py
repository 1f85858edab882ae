"""``ofmu submit``: run a command of ``ofmu`` as a job on a Ray cluster."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import click

from ofmu.cli.logs import follow_job, job_command
from ofmu.cli.params import DEFAULT_CONFIG, address_option
from ofmu.errors import ConfigError, nearest_name
from ofmu.io.text import counted

SUBMITTED = ("search", "compare", "unlearn", "prepare", "evaluate", "report", "export", "doctor")
"""The commands that can run as a job."""
_READS_SETTINGS = ("search", "unlearn", "prepare")
"""The commands whose config is checked here."""
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_OUTPUT_OPTIONS = {
    "search": ("--run-dir", "--output", "--resume"),
    "compare": ("--run-dir", "--output", "--resume"),
    "unlearn": ("--output",),
    "export": ("--output",),
}


@click.command("submit", context_settings={"allow_interspersed_args": False})
@address_option
@click.option("--follow", is_flag=True, help="Print the job's output until it is over, and exit with its status.")
@click.option(
    "--env", "environment", multiple=True, metavar="NAME[=VALUE]", help="A variable of the job's environment."
)
@click.option("--working-dir", default=".", type=FOLDER, metavar="DIR", help="What to upload; default: this directory.")
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="Upload what this pattern of the default list leaves out, such as '*.safetensors'.",
)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave more out; a pattern as in a .gitignore.")
@click.option("--dry-run", is_flag=True, help="List what would be uploaded, and the secrets that stay; submit nothing.")
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
    dry_run: bool,
    driver_cpus: float,
    driver_gpus: float,
    command: tuple[str, ...],
) -> None:
    """Upload the working directory and run COMMAND (such as: search mine.yaml --run-dir /shared/run) on a cluster.

    Files with secrets, run directories, weights, .git, virtual environments, caches and what a link names outside of
    the directory are not uploaded, nor are data files that CONFIG does not name. --env NAME takes a variable's value
    from this shell. Values are never printed, but the cluster stores them with the job.
    """
    if command[0] == "forget":
        raise ConfigError(
            "ofmu forget cannot run as a job, since its key stays with you: run it on a machine of the cluster, with "
            "cluster.address=auto"
        )
    if command[0] not in SUBMITTED:
        raise ConfigError(f"'{command[0]}' is no command to submit: {nearest_name(command[0], SUBMITTED)}")
    _check_no_credentials(command)
    _warn_if_results_are_lost(command)

    # Ray takes seconds to import, and the help and the error above do not need it.
    from cluster.jobs.server import JobServer, chosen_environment
    from cluster.jobs.working_dir import check_missing_files, left_out_secrets, plan_package

    variables = chosen_environment(environment)
    _check_settings(command, working_dir)
    package = plan_package(working_dir, command, include=include, exclude=exclude)
    size = f"{counted(len(package.sizes), 'file')}, {package.bytes / 2**20:.1f} MiB"
    if dry_run:
        for name, count in sorted(package.sizes.items()):
            click.echo(f"{count:>12,} {name}")
        click.echo(f"{package.root} would be uploaded ({size})")
        for name, pattern in left_out_secrets(package).items():
            click.echo(f"{name} stays here, since its name is that of a secret: --include '{pattern}' uploads it")
    check_missing_files(package, command)
    if dry_run:
        return
    server = JobServer(address)
    job_id = server.submit(command, package, environment=variables, cpus=driver_cpus, gpus=driver_gpus)
    click.echo(f"{job_id} is submitted to {server.address} with {package.root} ({size})", err=follow)
    if follow:
        follow_job(server, job_id, address)
    else:
        click.echo(
            f"{job_command('logs', job_id, address)} --follow shows it; {job_command('stop', job_id, address)} stops it"
        )


def _check_no_credentials(command: Sequence[str]) -> None:
    """Check that no word of the command holds credentials: everybody who reaches the cluster reads the job's command.

    Raises:
        ConfigError: a URI holds some.
    """
    # The package cluster lies above ofmu, so a command imports it when it runs.
    from cluster.storage.uri import has_credentials, redacted

    for word in command:
        for text in (word, word.partition("=")[2]):
            if has_credentials(text):
                raise ConfigError(
                    f"The credentials in {redacted(text)} would stand in clear in the job's table: leave them out, and "
                    "give the nodes a role, or --env AWS_ACCESS_KEY_ID --env AWS_SECRET_ACCESS_KEY"
                )


def _check_settings(command: Sequence[str], working_dir: Path) -> None:
    """Check the settings of the command's config, so that a misspelt key is found before files are looked for.

    A config that is not here, or that names modules of the user, is left to the job.

    Raises:
        ConfigError: a setting is unknown or wrong.
    """
    options = {word.partition("=")[0] for word in command}
    if command[0] not in _READS_SETTINGS or options & {"--resume", "--preset", "--help"}:
        return
    # These imports load pydantic and Ray, which take seconds.
    from cluster.jobs.working_dir import overrides_of
    from ofmu.config.files import is_preset, preset_names, read_mapping
    from ofmu.run_config import override
    from tune.config import search_config

    source = next((word for word in command[1:2] if not word.startswith("-") and "=" not in word), DEFAULT_CONFIG)
    path = source if is_preset(source) else working_dir / source
    if path not in preset_names() and not Path(path).is_file():
        return
    # The job's own command warns of settings that another method lacks.
    mapping = override(read_mapping(path), overrides_of(command), users_own=False)
    modules = [(mapping.get("method") or {}).get("module"), (mapping.get("evaluation") or {}).get("custom_metrics")]
    if not any(modules):
        search_config(
            mapping if command[0] == "search" else {key: value for key, value in mapping.items() if key != "search"}
        )


def _warn_if_results_are_lost(command: Sequence[str]) -> None:
    """Warn if the job writes its results into its copy of the working directory, which Ray deletes later."""
    options = _OUTPUT_OPTIONS.get(command[0], ())
    targets = [
        word.partition("=")[2] or following
        for word, following in zip(command, (*command[1:], ""), strict=True)
        if word.partition("=")[0] in options
    ]
    if options and not any(target.startswith("/") or "://" in target for target in targets):
        warnings.warn(
            f"the job writes into its own copy of the working directory, which Ray deletes: give {options[0]} an "
            "absolute path on storage that every node sees",
            stacklevel=2,
        )
