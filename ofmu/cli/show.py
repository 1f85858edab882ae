"""``ofmu show``: the settings, metrics and answers of one trial of a search, or of one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ofmu.errors import ConfigError
from ofmu.io.text import shell_word

if TYPE_CHECKING:
    from ofmu.reports.stored import StoredRun
    from tune.results.result import Point, SearchResult

_SETS = 2
"""Sets whose answers are printed: the forget rows, and the next set of the page."""


@click.command("show")
@click.argument("run", type=click.Path())
@click.argument("trial", required=False)
@click.option("--rows", type=click.IntRange(0), default=3, show_default=True, metavar="N", help="Answers per set.")
def show_command(run: str, trial: str | None, rows: int) -> None:
    """Print settings, metrics and answers of the run in RUN, or of TRIAL (a number, or knee) of the search in RUN."""
    # Optuna and torch are slow to import, and the help does not need them.
    from ofmu.reports.stored import StoredRun
    from tune.results.result import SearchResult
    from tune.rundir.kind import kind_of

    if kind_of(run) in ("run", "evaluation"):
        if trial is not None:
            raise ConfigError(f"{run} holds no search, so it has no trial {trial}: run ofmu show {shell_word(run)}")
        _show_run(StoredRun.open(run), rows)
        return
    result = SearchResult.load(run)
    if trial is None:
        raise ConfigError(f"{run} is a search: name one of its trials too, such as ofmu show {shell_word(run)} knee")
    point = result.trial(trial)
    values = point.values
    on_front = ", on the front" if point.number in set(result.front["trial"]) else ""
    click.echo(f"{point.name.capitalize()}: {values['role']}, {values['state']}{on_front}")
    if "reason" in values:
        click.echo(f"Reason: {values['reason']}")
    stored = StoredRun(point.fetch())
    _print_settings(values, stored.report.get("learning_rates") or {})
    _print_metrics(stored, values)
    _print_answers(stored, rows)
    _print_commands(result, point, stored)


def _show_run(stored: StoredRun, rows: int) -> None:
    click.echo(f"{stored.directory}: {'complete' if stored.report else f'{len(stored.history)} rounds, not complete'}")
    if stored.config is not None and not stored.is_evaluation:
        settings = stored.config.method.model_dump(mode="json", exclude={"module"})
        given = {f"method.{name}": value for name, value in settings.items() if value is not None}
        _print_settings(given, stored.report.get("learning_rates") or {})
    metrics = stored.report.get("metrics")
    if metrics:
        _print_metrics(stored, metrics)
        _print_answers(stored, rows)


def _print_settings(values: Mapping[str, Any], rates: Mapping[str, float]) -> None:
    from ofmu.io.console_table import aligned_lines
    from ofmu.reports.numbers import RATES_TITLE, number, rates_text

    settings = {key: value for key, value in values.items() if "." in key}
    click.echo("\nSettings")
    for line in aligned_lines([[f"  {key}", number(value, 6)] for key, value in settings.items()] or [["  none"]]):
        click.echo(line)
    if rates:
        click.echo(f"{RATES_TITLE.capitalize()}: {rates_text(rates)}")


def _print_metrics(stored: StoredRun, values: Mapping[str, Any]) -> None:
    from ofmu.cli.evaluate import show_report
    from ofmu.io.console_table import aligned_lines
    from ofmu.reports.numbers import metric_text

    report = stored.report
    if {"reasons", "utility_components", "truth_ratio", "config"} <= report.keys():
        reference = (report.get("prepared") or {}).get("reference_scores") or report.get("reference")
        click.echo("")
        show_report(
            report
            | {"model": str(stored.directory), "reference": reference, "baseline_metrics": stored.baseline_metrics}
        )
        return
    left = ("trial", "state", "role", "reason", "origin")
    metrics = {key: value for key, value in values.items() if "." not in key and key not in left}
    if metrics:
        click.echo("\nMetrics")
        for line in aligned_lines([[f"  {key}", metric_text(key, value, 6)] for key, value in metrics.items()]):
            click.echo(line)


def _print_answers(stored: StoredRun, rows: int) -> None:
    from ofmu.reports.run import answers_of

    for part in answers_of(stored)[:_SETS] if rows else ():
        click.echo(f"\n{part['title']}: {min(rows, len(part['rows']))} of {part['total']}")
        for row in part["rows"][:rows]:
            click.echo(f"  {row['question'] or '(plain text)'}")
            click.echo(f"    right answer: {row['truth']}")
            for answer in row["answers"]:
                text = "".join(words for words, _ in answer.parts)
                click.echo(f"    {answer.model}: {text or '(empty)'}")


def _print_commands(result: SearchResult, point: Point, stored: StoredRun) -> None:
    if stored.files.model.is_dir() or (result.uri is not None and point.number in set(result.front["trial"])):
        click.echo(
            f"\nTo take its model: ofmu export {shell_word(result.display_path)} --pick {point.number} --output DIR"
        )
    elif stored.files.config.is_file():
        # A run from the config ends with another model than that of the selected round.
        selects = "selected_round" in point.values
        again = "To run its settings again, to their last round" if selects else "To run it again"
        click.echo(f"\n{again}: ofmu unlearn {shell_word(stored.files.config)} --output DIR")
