"""``ofmu export``: copy one model of a search, with its metrics, config and model card, or upload it to the hub."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from ofmu.cli.params import Folder
from ofmu.errors import ConfigError


@click.command("export")
@click.argument("run", type=click.Path())
@click.option(
    "--pick",
    default="knee",
    show_default=True,
    metavar="knee|ID",
    help="Which trial: knee, or a number from front.csv.",
)
@click.option("--output", type=Folder(), metavar="DIR", help="A new directory for the model.")
@click.option("--push-to-hub", metavar="REPO", help="Upload the model to a new repository of the hub, as owner/name.")
@click.option("--public", is_flag=True, help="Let everybody see the new repository. Otherwise it is private.")
def export_command(run: str, pick: str, output: Path | None, push_to_hub: str | None, public: bool) -> None:
    """Copy a model of the search in RUN to DIR, which from_pretrained can load, or upload it to the hub."""
    if output is None and push_to_hub is None:
        raise ConfigError("Name where the model goes: --output DIR, --push-to-hub REPO, or both")
    if public and push_to_hub is None:
        raise ConfigError("--public is for --push-to-hub: leave it out, or name the repository")
    if push_to_hub is not None:
        from ofmu.models.hub_upload import check_upload

        check_upload(push_to_hub)
    # Optuna is slow to import, and the help does not need it.
    from ofmu.reports.numbers import metric_text
    from ofmu.reports.verdict import great_loss
    from tune.results.result import SearchResult
    from tune.results.tables import lost_objectives, target_metrics

    result = SearchResult.load(run)
    point = result.pick(pick)
    for name in lost_objectives(point.values, result.trials, result.config):
        kept = great_loss(point.values, target_metrics(result.trials), name) or f"keeps nothing of the {name}"
        click.echo(f"Warning: {point.name} {kept}: take another trial with --pick, or search again", err=True)
    with ExitStack() as temporary:
        folder = output or Path(temporary.enter_context(TemporaryDirectory(prefix="ofmu-export-"))) / "model"
        target = point.export(folder)
        scores = ", ".join(f"{name} {metric_text(name, point.values[name])}" for name in result.config.objectives)
        if output is not None:
            click.echo(f"{point.name.capitalize()} ({scores}) is in {target}")
        if push_to_hub is not None:
            from ofmu.models.hub_upload import upload_model

            url = upload_model(target, push_to_hub, public=public)
            click.echo(f"{point.name.capitalize()} ({scores}) is at {url}")
