"""``ofmu evaluate``: score a saved model and print its metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ofmu.cli.params import ConfigChoice, Folder, config_argument
from ofmu.errors import ConfigError, DataError, ModelError
from ofmu.evaluation.weak_reference import weak_reference
from ofmu.io.console_table import Column, print_table
from ofmu.io.files import expanded
from ofmu.io.ranks import launched_ranks
from ofmu.reports.numbers import MISSING, memory

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
"""The metrics of the table's first rows, for text and for images. Those that a report lacks are left out."""

_DEFAULTS = "config: the defaults, since no run of ofmu made this model"
_ABSENT_SET = re.compile(r"the data has no evaluation set '(.+)'")
_LACKING = re.compile(r"row \d+ of the set '.+' has no (.+)")


@click.command("evaluate")
@click.argument("model")
@config_argument
@click.option("--reference", help="A retrained model, scores.json of it, or a log of TOFU or open-unlearning.")
@click.option(
    "--beside",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Add a column: scores.json or metrics.json, or a log or a summary of open-unlearning.",
)
@click.option("--output", type=Folder(), help="Folder for metrics.json, scores.json and report.html.")
@click.option(
    "--export",
    type=click.Choice(["open-unlearning"]),
    help="Also write TOFU_EVAL.json and TOFU_SUMMARY.json, or those of MUSE, to the folder.",
)
@click.option(
    "--allow-code",
    is_flag=True,
    help="Import modules, and tasks of lm-eval, that the model's config names. Their code runs.",
)
def evaluate_command(
    model: str,
    config: ConfigChoice,
    reference: str | None,
    beside: tuple[Path, ...],
    output: Path | None,
    export: Literal["open-unlearning"] | None,
    allow_code: bool,
) -> None:
    """Score MODEL, a saved model's directory or hub name, on the data of CONFIG and print its metrics.

    MODEL may also be a file of scores: scores.json, or a log of TOFU or open-unlearning.

    CONFIG is a YAML file or a preset's name. Without it, the config.yaml in or above the model's directory is used,
    else the defaults.

    Under torchrun or deepspeed, all ranks score a language model together.
    """
    settings = _read_config(model, config, allow_code)

    # Imported after the config was read, since importing torch and Transformers takes seconds.
    from ofmu.evaluator import evaluate

    with _saved_paths(model, config):
        report = evaluate(model, settings, reference=reference, beside=beside, output_dir=output, export=export)
    if launched_ranks().rank != 0:
        return
    if config.name is None and not expanded(model).exists():
        _say(_DEFAULTS)
    show_report(report)
    if output is not None:
        from ofmu.reports.page import write_page_or_warn
        from ofmu.reports.run import run_page

        page = write_page_or_warn(lambda: run_page(output, is_ours=True), output)
        click.echo(f"metrics and scores are in {output}")
        for line in _export_lines(report):
            click.echo(line)
        if page is not None:
            click.echo(f"the report is in {page}")


def _export_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield which files of other software were written, and what they lack."""
    if "exported" not in report:
        return
    yield f"written as open-unlearning does: {', '.join(report['exported'])}"
    by_reason: dict[str, list[str]] = {}
    for name, reason in report["not_exported"].items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        yield f"left out of them: {', '.join(names)} ({reason})"


def _read_config(model: str, config: ConfigChoice, allow_code: bool) -> UnlearnConfig:
    from ofmu.provenance import config_of_run, read_config_of_model
    from ofmu.run_config import UnlearnConfig

    source = config_of_run(model)
    if config.name is not None or source is None:
        # Whether there is a model is known at once of a path here, and after the evaluation of a name of the hub.
        if config.name is None and expanded(model).exists():
            _say(_DEFAULTS)
        return UnlearnConfig.read(config.name, config.overrides)
    _say(f"config: {source}")
    return read_config_of_model(source, config.overrides, allow_code=allow_code)


@contextmanager
def _saved_paths(model: str, config: ConfigChoice) -> Iterator[None]:
    """Say of a relative path in the config of the model's run where it starts, if nothing is found there."""
    from ofmu.io.files import LOOKED_FOR
    from ofmu.provenance import config_of_run

    try:
        yield
    except (DataError, ModelError) as error:
        source = config_of_run(model) if config.name is None else None
        if source is None or LOOKED_FOR not in str(error):
            raise
        raise type(error)(
            f"{error}; relative paths in {source} start at the directory in which that run was started, so run ofmu "
            "evaluate there, or give the paths as overrides"
        ) from error


def _say(line: str) -> None:
    if launched_ranks().rank == 0:
        click.echo(line, err=True)


def show_report(report: Mapping[str, Any]) -> None:
    """Print a report of :func:`ofmu.evaluate`: a table on a terminal, plain lines elsewhere, and remarks below."""
    names, rows = ("value", *report.get("baseline_metrics", {})), _table_rows(report)
    notes = any(row.note for row in rows)
    print_table(
        [
            Column("metric", wrap=False, overflow="ellipsis"),
            *(Column(name, justify="right", wrap=False, overflow="ellipsis") for name in names),
            *([Column("note", overflow="ellipsis")] if notes else []),
        ],
        [(row.metric, *row.numbers, *([row.note] if notes else [])) for row in rows],
        plain_rows=_plain_rows(names, rows),
        title=_title(report),
        section_ends={sum(row.metric in HEADLINES for row in rows)},
    )
    for line in _remarks(report):
        click.echo(line)
    baselines = report.get("baseline_metrics", {})
    weakness = weak_reference(baselines.get("target", {}), baselines.get("retrained", {}))
    if weakness is not None:
        click.echo(f"Warning: {weakness}", err=True)
    if baselines.get("target", {}).get("model_utility") == 0:
        click.echo(
            "Warning: the target's own model_utility is 0, so it cannot show what was lost: compare its components, "
            "the metrics of the retain set and of the other sets",
            err=True,
        )


def _title(report: Mapping[str, Any]) -> str:
    definition = f" ({report['truth_ratio']} truth ratio)" if report["truth_ratio"] else ""
    return f"{report['model']}{definition}"


@dataclass(frozen=True)
class _Row:
    metric: str
    numbers: tuple[str, ...]
    """The model's value, then the values of the target and of the retrained model if these are known."""
    note: str
    """Why the value is missing."""


def _table_rows(report: Mapping[str, Any]) -> list[_Row]:
    """Return one row per metric. Metrics of evaluation sets that the data lacks are left to the remarks."""
    values, notes = report["metrics"], dict(report["reasons"])
    names = [*_headlines(values), *(name for name in values if name not in HEADLINES)]
    method = (report.get("config") or {}).get("method") or {}
    if method and "outer_steps" not in method:
        names = [name for name in names if name != "outer_steps_taken"]  # a method with one loop has no outer steps
    zeros = [name for name in report["utility_components"] if values[name] == 0]
    if values.get("model_utility") == 0 and zeros:
        notes["model_utility"] = f"a harmonic mean is 0 if a component is 0, here {' and '.join(zeros)}"
    shown = [name for name in names if not _is_in_remarks(notes.get(name, ""))]
    sources = (values, *report.get("baseline_metrics", {}).values())
    # What the remarks say of several metrics at once is not repeated at each of them.
    notes = {name: note for name, note in notes.items() if not _LACKING.fullmatch(note)}
    return [_Row(name, tuple(_text(name, each.get(name)) for each in sources), notes.get(name, "")) for name in shown]


def _is_in_remarks(note: str) -> bool:
    return bool(_ABSENT_SET.fullmatch(note) or _LACKING.fullmatch(note))


def _headlines(values: Mapping[str, Any]) -> list[str]:
    return [name for name in HEADLINES if name in values]


def _remarks(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines below the table: the components of model utility, and why metrics are missing."""
    if "average_gap" in report["metrics"]:
        if report["reference"] is None:
            yield "gaps to retraining need a reference: run ofmu prepare with the same config, or give --reference"
        return
    yield f"model utility is the harmonic mean of: {', '.join(report['utility_components']) or 'nothing'}"
    matches = [reason for reason in report["reasons"].values() if _ABSENT_SET.fullmatch(reason)]
    if absent := list(dict.fromkeys(name for reason in matches for name in re.findall("'(.+?)'(?: or |$)", reason))):
        yield f"not measured, since the data has no such evaluation sets: {', '.join(absent)}"
    lacking: dict[str, list[str]] = {}
    for name, reason in report["reasons"].items():
        if match := _LACKING.fullmatch(reason):
            lacking.setdefault(match[1], []).append(name)
    for what, names in lacking.items():
        yield f"not measured, since rows have no {what}: {', '.join(names)}"
    if report["metrics"]["forget_quality"] is None:
        yield f"forget quality {_why_no_quality(report)}"


def _why_no_quality(report: Mapping[str, Any]) -> str:
    """Return why forget quality is missing, and the fix."""
    reasons = report["reasons"]
    if "non-finite" in reasons.get("forget_truth_ratio", ""):
        return "is missing, since the model's losses are NaN or infinite: use a model whose training did not diverge"
    if report["metrics"]["forget_truth_ratio"] is None:
        fix = "add the columns paraphrased_answer and perturbed_answer"
        return f"cannot be computed on these rows, with or without a reference ({reasons['forget_truth_ratio']}): {fix}"
    if report["reference"] is not None:
        return f"is missing: {reasons['forget_quality']}"
    if report["config"]["reference"]["source"] == "none":
        return "needs a reference, and reference.source is 'none': set it to retrain, model or scores"
    return f"needs a reference, and none is cached for this config{_what_differs(report)}"


def _what_differs(report: Mapping[str, Any]) -> str:
    """Return the keys in which the config differs from the model's own config, and the fix."""
    from ofmu.io.plugins import results_only
    from ofmu.provenance import config_of_run, differing_keys
    from ofmu.run_config import UnlearnConfig

    own = config_of_run(report["model"])
    try:
        with results_only(str(own)):
            keys = (
                []
                if own is None
                else differing_keys(UnlearnConfig.model_validate(report["config"]), UnlearnConfig.read(own))
            )
    except ConfigError:  # the model's config was written by another version
        keys = []
    if not keys:
        return ": run ofmu prepare with it, or give --reference"
    return (
        f", which differs from the one that this model was made with ({own}) in {', '.join(keys)}: "
        "evaluate under that one, run ofmu prepare with this one, or give --reference"
    )


def _plain_rows(names: Sequence[str], rows: Sequence[_Row]) -> list[tuple[str, str]]:
    """Return the metric, and the numbers with the note as one cell. Only a table of several columns has a header."""
    header = [_Row("metric", tuple(names), "")] if len(names) > 1 else []
    plain = []
    for row in (*header, *rows):
        numbers = "  ".join(f"{number:<9}" for number in row.numbers).rstrip()
        plain.append((row.metric, f"{numbers}{f'  ({row.note})' if row.note else ''}"))
    return plain


def _text(name: str, value: float | None) -> str:
    if value is None:
        return MISSING
    if name.endswith("_bytes"):
        return memory(value)
    return f"{value:.0f}" if value == int(value) and abs(value) > 1 else f"{value:.4g}"
