"""``ofmu evaluate``: score a saved model and print its metrics."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ofmu.commands.prepare import SECTIONS_OF_OTHERS

HEADLINES = (
    "ks_statistic",
    "forget_quality",
    "log10_forget_quality",
    "forget_quality_rows",
    "forget_truth_ratio",
    "model_utility",
    "extraction_strength",
    "exact_memorization",
)


@click.command("evaluate")
@click.argument("model")
@click.argument("settings", nargs=-1, metavar="[CONFIG] [SECTION.KEY=VALUE]...")
@click.option("--reference", help="A retrained model, scores.json of it, or an official TOFU log.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for metrics.json and scores.json.")
def evaluate_command(model: str, settings: tuple[str, ...], reference: str | None, output: Path | None) -> None:
    """Score MODEL, a saved model's directory or hub name, on the data of CONFIG and print its metrics.

    CONFIG is a YAML file or a preset's name; without it, the config.yaml in or above the model's directory is
    taken, else the defaults.
    """
    config = _read_config(model, settings)

    # Imported after the settings are known to be sound: these take seconds.
    from ofmu.evaluation import evaluate
    from ofmu.quiet import quiet_libraries

    quiet_libraries()
    report = evaluate(model, config, reference=reference, output_dir=output)
    show_report(report)
    if output is not None:
        click.echo(f"metrics and scores are in {output}")


def _read_config(model: str, settings: Sequence[str]) -> Any:
    from ofmu.config import UnlearnConfig
    from ofmu.config_io import apply_overrides, read_mapping, validate

    named = bool(settings) and "=" not in settings[0]
    source: str | Path | None = settings[0] if named else _config_of_run(model)
    if source is not None and not named:
        click.echo(f"config: {source}", err=True)
    mapping = {} if source is None else read_mapping(source)
    mapping = apply_overrides(mapping, settings[1:] if named else settings)
    return validate(UnlearnConfig, {key: mapping[key] for key in mapping if key not in SECTIONS_OF_OTHERS})


def _config_of_run(model: str) -> Path | None:
    """Return the config with which a run made this model, if the model still lies in its run directory."""
    folder = Path(model)
    places = (folder / "config.yaml", folder.resolve().parent / "config.yaml") if folder.is_dir() else ()
    return next((place for place in places if place.is_file()), None)


def show_report(report: Mapping[str, Any]) -> None:
    """Print what ``evaluate`` returned: a table on a terminal, plain lines elsewhere."""
    rows = _table_rows(report)
    if sys.stdout.isatty():
        _print_table(report, rows)
    else:
        width = max(len(name) for name, _, _ in rows)
        for name, value, note in rows:
            click.echo(f"{name:<{width}}  {value}{f'  ({note})' if note else ''}")
    click.echo(f"model utility is the harmonic mean of: {', '.join(report['utility_components']) or 'nothing'}")
    if report["reference"] is None:
        click.echo("forget quality needs a reference: run ofmu prepare with the same config, or give --reference")


def _table_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    values, reasons = report["metrics"], report["reasons"]
    names = [*HEADLINES, *(name for name in values if name not in HEADLINES)]
    return [(name, _number(values[name]), reasons.get(name, "")) for name in names]


def _print_table(report: Mapping[str, Any], rows: Sequence[tuple[str, str, str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    notes = any(note for _, _, note in rows)
    table = Table(title=escape(f"{report['model']} ({report['truth_ratio']} truth ratio)"))
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    if notes:
        table.add_column("why it is missing")
    for position, (name, value, note) in enumerate(rows, start=1):
        cells = (name, value, escape(note)) if notes else (name, value)
        table.add_row(*cells, end_section=position == len(HEADLINES))
    Console().print(table)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value == int(value) and abs(value) > 1 else f"{value:.4g}"
