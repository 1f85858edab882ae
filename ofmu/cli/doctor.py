"""``ofmu doctor``: find what would stop a search, and say how to fix it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ofmu.cli.params import ConfigChoice, config_argument
from ofmu.errors import ConfigError
from ofmu.io.console_table import Cell, Column, print_table

if TYPE_CHECKING:
    from cluster.doctor.checks import Check
    from tune.config import SearchConfig

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@config_argument
@click.option("--address", metavar="ADDRESS", help="A cluster: host:port, ray://host:port, auto, or http://HEAD:8265.")
@click.option("--storage", metavar="DIR", help="A folder or URI that every node must write and read.")
@click.option(
    "--include", multiple=True, metavar="PATTERN", help="What else the job at an http address uploads; see ofmu submit."
)
def doctor_command(config: ConfigChoice, address: str | None, storage: str | None, include: tuple[str, ...]) -> None:
    """Check a cluster, or this machine, for what a search needs; exit with status 1 if something has to be fixed.

    With CONFIG (a YAML file or a preset's name) its model, data and cluster section are checked too. At an http
    address the checks run as a job, with the working directory that a search would have.
    """
    settings = _read(config)
    named = address or (settings.cluster.address if settings else None)
    address = named or os.environ.get("RAY_ADDRESS")
    if address and address.startswith(("http://", "https://")):
        _run_as_job(address, storage, config.words(), include)
        return
    if include:
        raise ConfigError("--include has no effect: only the checks at an http address upload files, so leave it out")

    # Ray takes seconds to import, and the help does not need it.
    from cluster.config import ClusterConfig
    from cluster.doctor.doctor import examine_cluster, examine_machine, group_by_host

    unlearn = settings.unlearn if settings else None
    if address is None:
        found = examine_machine(unlearn, storage)
    else:
        # Ray itself reads $RAY_ADDRESS, and an error then names that variable.
        cluster = (settings.cluster if settings else ClusterConfig()).model_copy(update={"address": named})
        wanted = settings.search.max_concurrent_trials if settings else None
        found = examine_cluster(cluster, unlearn, storage, max_concurrent_trials=wanted)
    _show(group_by_host(found))
    if any(check.state == "fail" for check in found):
        raise SystemExit(1)


def _read(config: ConfigChoice) -> SearchConfig | None:
    if not config.words():
        return None
    from tune.config import SearchConfig

    return SearchConfig.read(config.source, config.overrides)


def _run_as_job(address: str, storage: str | None, config: Sequence[str], include: Sequence[str]) -> None:
    """Check the job server from this machine, and everything else in a job on the cluster."""
    from cluster.doctor.doctor import examine_job_server
    from cluster.jobs.server import JobServer
    from cluster.jobs.working_dir import check_missing_files, plan_package
    from ofmu.cli.logs import follow_job

    found = examine_job_server(address)
    _show(found)
    if any(check.state == "fail" for check in found):
        raise SystemExit(1)
    command = ["doctor", *config, "--address", "auto", *(["--storage", storage] if storage else [])]
    package = plan_package(Path(), command, include=include)
    check_missing_files(package, command)
    server = JobServer(address)
    follow_job(server, server.submit(command, package), address)


def _show(found: Sequence[Check]) -> None:
    """Print the checks, each followed by its fix if the check found a problem."""
    rows: list[tuple[Cell, ...]] = []
    plain: list[tuple[str, str, str]] = []
    for check in found:
        fix = check.fix if check.state != "ok" else ""
        rows.append(
            (
                ((check.state, _STYLES[check.state]),),
                check.name,
                ((check.detail, ""), (f"\n→ {fix}" if fix else "", "bold")),
                check.host,
            )
        )
        plain.append((check.state, check.name, f"{check.detail}  [{check.host}]" if check.host else check.detail))
        if fix:
            plain.append(("", "", f"→ {fix}"))
    columns = [Column(name, overflow="ellipsis") for name in ("", "check", "found", "where")]
    print_table(columns, rows, plain_rows=plain, min_widths=(4,))
