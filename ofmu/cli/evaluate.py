"""``ofmu evaluate``: score a saved model and print its metrics."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ofmu.cli.params import Folder
from ofmu.errors import ConfigError

if TYPE_CHECKING:
    from ofmu.run_config import UnlearnConfig

HEADLINES = (
    "ks_statistic",
    "forget_quality",
    "log10_forget_quality",
    "forget_quality_rows",
    "forget_truth_ratio",
    "model_utility",
    "extraction_strength",
    "exact_memorization",
    "unlearning_accuracy",
    "remaining_accuracy",
    "testing_accuracy",
    "mia_efficacy",
    "average_gap",
)
"""What stands first in the table, of text and of images."""

_ABSENT_SET = re.compile(r"the data has no evaluation set '(.+)'")


@click.command("evaluate")
@click.argument("model")
@click.argument("settings", nargs=-1, metavar="[CONFIG] [SECTION.KEY=VALUE]...")
@click.option("--reference", help="A retrained model, scores.json of it, or an official TOFU log.")
@click.option("--output", type=Folder(), help="Folder for metrics.json and scores.json.")
def evaluate_command(model: str, settings: tuple[str, ...], reference: str | None, output: Path | None) -> None:
    """Score MODEL, a saved model's directory or hub name, on the data of CONFIG and print its metrics.

    CONFIG is a YAML file or a preset's name; without it, the config.yaml in or above the model's directory is
    taken, else the defaults.
    """
    config = _read_config(model, settings)

    # Imported after the settings are known to be sound: it takes seconds.
    from ofmu.evaluator import evaluate

    report = evaluate(model, config, reference=reference, output_dir=output)
    show_report(report)
    if output is not None:
        click.echo(f"metrics and scores are in {output}")


def _read_config(model: str, settings: Sequence[str]) -> UnlearnConfig:
    from ofmu.provenance import config_of_run
    from ofmu.run_config import UnlearnConfig

    if settings and "=" not in settings[0]:
        return UnlearnConfig.read(settings[0], settings[1:])
    source = config_of_run(model)
    if source is not None:
        click.echo(f"config: {source}", err=True)
    return UnlearnConfig.read(source, settings)


def show_report(report: Mapping[str, Any]) -> None:
    """Print what ``evaluate`` returned: a table on a terminal, plain lines elsewhere."""
    columns, rows = _columns(report), _table_rows(report)
    if sys.stdout.isatty():
        _print_table(report, columns, rows)
    else:
        _print_lines(columns, rows)
    for line in _remarks(report):
        click.echo(line)


@dataclass(frozen=True)
class _Row:
    metric: str
    numbers: tuple[str, ...]
    """The model's, then those of the baseline_metrics."""
    note: str


def _columns(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the heads of the columns of numbers: the model's own, and what it is read against."""
    return ("value", *report.get("baseline_metrics", {}))


def _table_rows(report: Mapping[str, Any]) -> list[_Row]:
    """Return one row per metric; those of sets that the data lacks share a remark below instead."""
    values, notes = report["metrics"], dict(report["reasons"])
    names = [*_headlines(values), *(name for name in values if name not in HEADLINES)]
    zeros = [name for name in report["utility_components"] if values[name] == 0]
    if values.get("model_utility") == 0 and zeros:
        notes["model_utility"] = f"a harmonic mean is 0 where a part of it is, as here {' and '.join(zeros)}"
    shown = [name for name in names if name in HEADLINES or not _ABSENT_SET.fullmatch(notes.get(name, ""))]
    sources = (values, *report.get("baseline_metrics", {}).values())
    return [_Row(name, tuple(_number(each.get(name)) for each in sources), notes.get(name, "")) for name in shown]


def _headlines(values: Mapping[str, Any]) -> list[str]:
    return [name for name in HEADLINES if name in values]


def _remarks(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines below the table: what model utility is made of, and why something is not there."""
    if "average_gap" in report["metrics"]:
        if report["reference"] is None:
            yield "gaps to retraining need a reference: run ofmu prepare with the same config, or give --reference"
        return
    yield f"model utility is the harmonic mean of: {', '.join(report['utility_components']) or 'nothing'}"
    matches = [_ABSENT_SET.fullmatch(reason) for reason in report["reasons"].values()]
    if absent := list(dict.fromkeys(match[1] for match in matches if match)):
        yield f"not measured, since the data has no such evaluation sets: {', '.join(absent)}"
    if report["metrics"]["forget_quality"] is None:
        yield f"forget quality {_why_no_quality(report)}"


def _why_no_quality(report: Mapping[str, Any]) -> str:
    """Return what forget quality lacks on these rows, or for want of which reference, and the mend."""
    reasons = report["reasons"]
    if report["metrics"]["forget_truth_ratio"] is None:
        mend = "rows need the columns paraphrased_answer and perturbed_answer for it"
        return f"cannot be had on these rows, with or without a reference ({reasons['forget_truth_ratio']}): {mend}"
    if report["reference"] is not None:
        return f"is missing: {reasons['forget_quality']}"
    if report["config"]["reference"]["source"] == "none":
        return "needs a reference, and reference.source is 'none': set it to retrain, model or scores"
    return f"needs a reference, and none is cached for this config{_what_differs(report)}"


def _what_differs(report: Mapping[str, Any]) -> str:
    """Return how the config that was given departs from the one under which the model was made."""
    from ofmu.provenance import config_of_run, differing_keys
    from ofmu.run_config import UnlearnConfig

    own = config_of_run(report["model"])
    try:
        keys = (
            []
            if own is None
            else differing_keys(UnlearnConfig.model_validate(report["config"]), UnlearnConfig.read(own))
        )
    except ConfigError:  # written by another version of this program
        keys = []
    if not keys:
        return ": run ofmu prepare with it, or give --reference"
    return (
        f", which differs from the one that this model was made with ({own}) in {', '.join(keys)}: "
        "evaluate under that one, run ofmu prepare with this one, or give --reference"
    )


def _print_lines(columns: Sequence[str], rows: Sequence[_Row]) -> None:
    width = max(len(row.metric) for row in rows)
    head = [_Row("metric", tuple(columns), "")] if len(columns) > 1 else []
    for row in (*head, *rows):
        numbers = "  ".join(f"{number:<9}" for number in row.numbers).rstrip()
        click.echo(f"{row.metric:<{width}}  {numbers}{f'  ({row.note})' if row.note else ''}")


def _print_table(report: Mapping[str, Any], columns: Sequence[str], rows: Sequence[_Row]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    notes = any(row.note for row in rows)
    definition = f" ({report['truth_ratio']} truth ratio)" if report["truth_ratio"] else ""
    table = Table(title=escape(f"{report['model']}{definition}"))
    table.add_column("metric", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    if notes:
        table.add_column("note")
    for position, row in enumerate(rows, start=1):
        cells = (row.metric, *row.numbers, *([escape(row.note)] if notes else []))
        table.add_row(*cells, end_section=position == len(_headlines(report["metrics"])))
    Console().print(table)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value == int(value) and abs(value) > 1 else f"{value:.4g}"
