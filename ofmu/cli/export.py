"""``ofmu export``: copy one model of a search, with its metrics and config."""

from __future__ import annotations

from pathlib import Path

import click

from ofmu.cli.params import Folder


@click.command("export")
@click.argument("run", type=click.Path())
@click.option(
    "--pick",
    default="knee",
    show_default=True,
    metavar="knee|ID",
    help="Which trial: knee, or a number from front.csv.",
)
@click.option("--output", required=True, type=Folder(), metavar="DIR", help="A new directory for the model.")
def export_command(run: str, pick: str, output: Path) -> None:
    """Copy a model of the search in RUN to DIR, which from_pretrained can load."""
    # Optuna is slow to import, and the help does not need it.
    from tune.results.result import SearchResult

    result = SearchResult.load(run)
    point = result.pick(pick)
    target = point.export(output)
    scores = ", ".join(f"{name} {point.values[name]:.4g}" for name in result.config.objectives)
    click.echo(f"Trial {point.number} ({scores}) is in {target}")
