"""``ofmu prepare``: train or find in the cache what runs start from and are judged against."""

from __future__ import annotations

import click

from ofmu.tasks.events import PartReady, PreparationEvent, TrainingEpoch


@click.command("prepare")
@click.argument("config", default="quickstart")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
def prepare_command(config: str, overrides: tuple[str, ...]) -> None:
    """Train the target and the retrain reference of CONFIG, and score both; what the cache has is not made again.

    CONFIG is a YAML file or a preset's name (default: quickstart).
    """
    from ofmu.preflight import check_inputs
    from ofmu.run_config import UnlearnConfig

    if "=" in config:
        config, overrides = "quickstart", (config, *overrides)
    settings = UnlearnConfig.read(config, overrides)

    check_inputs(settings)

    # Imported after the settings are known to be sound: it takes seconds.
    from ofmu.preparer import prepare

    prepared = prepare(settings, callback=print_event)
    click.echo(f"base              {prepared.base or 'not needed'}")
    click.echo(f"target            {prepared.target}")
    click.echo(f"target scores     {prepared.target_scores}")
    click.echo(f"retrain           {prepared.retrain or 'not asked for'}")
    click.echo(f"reference scores  {prepared.reference_scores or 'not asked for'}")


def print_event(event: PreparationEvent) -> None:
    """Print one line per part, and four lines per training."""
    if isinstance(event, PartReady):
        how = "made" if event.created else "found in the cache"
        click.echo(f"{event.part}: {how} in {event.seconds:.1f} s")
    elif isinstance(event, TrainingEpoch) and event.epoch in _milestones(event.epochs):
        click.echo(f"{event.part}: epoch {event.epoch} of {event.epochs}, loss {event.loss:.3f}")


def _milestones(epochs: int) -> set[int]:
    return {max(1, round(epochs * share / 4)) for share in (1, 2, 3, 4)}
