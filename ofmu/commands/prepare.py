"""``ofmu prepare``: train or find in the cache what runs start from and are judged against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

SECTIONS_OF_OTHERS = ("search", "cluster")
"""Sections that other commands read from the same file."""


@click.command("prepare")
@click.argument("config", default="quickstart")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
def prepare_command(config: str, overrides: tuple[str, ...]) -> None:
    """Train the target and the retrain reference of CONFIG, and score both; what the cache has is not made again.

    CONFIG is a YAML file or a preset's name (default: quickstart).
    """
    from ofmu.config import UnlearnConfig
    from ofmu.config_io import apply_overrides, read_mapping, validate

    if "=" in config:
        config, overrides = "quickstart", (config, *overrides)
    mapping = apply_overrides(read_mapping(config), overrides)
    settings = validate(UnlearnConfig, {key: mapping[key] for key in mapping if key not in SECTIONS_OF_OTHERS})

    # Imported after the settings are known to be sound: these take seconds.
    from ofmu.quiet import quiet_libraries
    from ofmu.reference import prepare

    quiet_libraries()
    prepared = prepare(settings, listener=_print_event)
    click.echo(f"target            {prepared.target}")
    click.echo(f"target scores     {prepared.target_scores}")
    click.echo(f"retrain           {prepared.retrain or 'not asked for'}")
    click.echo(f"reference scores  {prepared.reference_scores or 'not asked for'}")


def _print_event(event: Mapping[str, Any]) -> None:
    if event["event"] == "part":
        how = "made" if event["made"] else "found in the cache"
        click.echo(f"{event['part']}: {how} in {event['seconds']:.1f} s")
    elif event["event"] == "epoch" and event["epoch"] in _milestones(event["epochs"]):
        click.echo(f"{event['part']}: epoch {event['epoch']} of {event['epochs']}, loss {event['loss']:.3f}")


def _milestones(epochs: int) -> set[int]:
    return {max(1, round(epochs * share / 4)) for share in (1, 2, 3, 4)}
