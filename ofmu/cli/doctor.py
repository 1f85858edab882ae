"""``ofmu doctor``: look for what would stop a search, and say how to mend it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cluster.doctor.checks import Check

COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@click.argument("config", required=False)
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--address", metavar="ADDRESS", help="A cluster: host:port, ray://host:port, auto, or http://HEAD:8265.")
@click.option("--storage", metavar="DIR", help="A folder or URI that every node must write and read.")
def doctor_command(config: str | None, overrides: tuple[str, ...], address: str | None, storage: str | None) -> None:
    """Check a cluster, or this machine, for what a search needs; exit with status 1 if something has to be mended.

    With CONFIG (a YAML file or a preset's name) its model, data and cluster section are looked at too. At an http
    address the checks run as a job, with the working directory that a search would have.
    """
    settings = _read(config, overrides)
    address = address or (settings.cluster.address if settings else None) or os.environ.get("RAY_ADDRESS")
    if address and address.startswith(("http://", "https://")):
        _as_job(address, storage, [*([config] if config else []), *overrides])
        return

    # Imported here: Ray takes seconds, and the command line's start must not.
    from cluster.config import ClusterConfig
    from cluster.doctor.doctor import examine_cluster, examine_machine, merged

    unlearn = settings.unlearn if settings else None
    if address is None:
        found = examine_machine(unlearn, storage)
    else:
        cluster = (settings.cluster if settings else ClusterConfig()).model_copy(update={"address": address})
        wanted = settings.search.max_concurrent_trials if settings else None
        found = examine_cluster(cluster, unlearn, storage, max_concurrent_trials=wanted)
    _show(merged(found))
    if any(check.state == "fail" for check in found):
        raise SystemExit(1)


def _read(config: str | None, overrides: Sequence[str]) -> Any:
    if config is None:
        return None
    from tune.config import SearchConfig

    if "=" in config:
        config, overrides = "quickstart", (config, *overrides)
    return SearchConfig.read(config, overrides)


def _as_job(address: str, storage: str | None, arguments: Sequence[str]) -> None:
    """Check the job server from here and all else from within, as the job that a search would be."""
    from cluster.doctor.doctor import examine_job_server
    from cluster.jobs.server import JobServer
    from cluster.jobs.working_dir import plan_package, refuse_missing_files
    from ofmu.cli.logs import follow_job

    found = examine_job_server(address)
    _show(found)
    if any(check.state == "fail" for check in found):
        raise SystemExit(1)
    command = ["doctor", *arguments, "--address", "auto", *(["--storage", storage] if storage else [])]
    package = plan_package(Path())
    refuse_missing_files(package, command)
    server = JobServer(address)
    follow_job(server, server.submit(command, package), address)


def _show(found: Sequence[Check]) -> None:
    """Print the checks: a table on a terminal, plain lines elsewhere; mends follow below."""
    if sys.stdout.isatty():
        _print_table(found)
        return
    width = max(len(check.name) for check in found)
    for check in found:
        where = f"  [{check.where}]" if check.where else ""
        click.echo(f"{check.state:<4}  {check.name:<{width}}  {check.found}{where}")
        if check.mend and check.state != "ok":
            click.echo(f"{'':<4}  {'':<{width}}  → {check.mend}")


def _print_table(found: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "check", "found", "where")
    for check in found:
        text = escape(check.found)
        if check.mend and check.state != "ok":
            text += f"\n[bold]→ {escape(check.mend)}[/bold]"
        color = COLORS[check.state]
        table.add_row(f"[{color}]{check.state}[/{color}]", escape(check.name), text, escape(check.where))
    Console().print(table)
