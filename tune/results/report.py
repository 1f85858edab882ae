"""The reports of a search: trials.csv, front.csv, front.png, search.json, and the front as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from ofmu.io.files import write_bytes, write_text
from ofmu.io.plugins import results_only
from ofmu.io.text import counted
from ofmu.reports.numbers import MISSING, metric_text
from tune.results.confirmed import spreads_text, with_confirmation
from tune.results.result import SearchResult
from tune.results.tables import complete_of_role, feasible_rows, lost_objectives, trial_name
from tune.rundir.search_dir import RunDirectory
from tune.rundir.search_files import SearchSummary
from tune.rundir.seed_runs import Confirmation
from tune.study.baselines import TARGET, baseline_settings


def write_tables(result: SearchResult, seconds: float, *, is_over: bool | None = None) -> None:
    """Write trials.csv, front.csv and search.json. Each file is replaced in one step.

    Args:
        result: the result to write.
        seconds: seconds of search, over all sessions.
        is_over: whether the search needs no further trial; None if the caller does not know.

    Raises:
        StorageError: the disk is full or refuses the write.
    """
    run = RunDirectory(result.run_dir)
    write_text(run.trials_table, result.trials.to_csv(index=False))
    write_text(run.front_table, with_confirmation(result).to_csv(index=False))
    states = result.trials["state"]
    run.write_summary(
        SearchSummary(
            complete=int((states == "complete").sum()),
            failed=int((states == "failed").sum()),
            pruned=int((states == "pruned").sum()),
            asked=result.config.search.num_trials,
            seconds=round(seconds, 3),
            objectives=result.config.objectives,
            hypervolume=result.hypervolume,
            hypervolume_reference=result.hypervolume_reference,
            front=result.front["trial"].tolist(),
            knee=result.knee.number if result.has_feasible else None,
            feasible=len(feasible_rows(result.trials)) if result.config.search.constraints else None,
            nearest=result.chosen.number if result.nearest_sentence else None,
            limits=[str(limit) for limit in result.limits],
            is_over=is_over,
        )
    )


def write_plot(result: SearchResult) -> Path:
    """Write front.png in one step, and return its path.

    Raises:
        StorageError: the disk is full or refuses the write.
    """
    path, picture = RunDirectory(result.run_dir).front_plot, BytesIO()
    result.plot(picture)
    write_bytes(path, picture.getvalue())
    return path


def format_front(result: SearchResult) -> list[list[str]]:
    """Return the front as rows of text: a header, then per trial its number, role, objectives and settings.

    The settings are those that the search varied. For a baseline, they are those that the baseline sets. The KS
    statistic is followed by the test's p and by its number of forget rows. Constrained metrics have columns whose heads
    are their bounds, and the column ``feasible`` says which trials keep all of them. If points ran again on further
    seeds, a column has the mean and the standard deviation of their objectives. The last rows are the untouched target,
    if it is not on the front, and the retrained model.
    """
    names, confirmation = list(result.config.objectives), result.confirmation
    bounded = [name for name in result.config.search.constraints if name not in names]
    heads = [bounds_text(result, name) for name in bounded]
    feasible = ["feasible"] if result.config.search.constraints else []
    on_seeds = [_head_on_seeds(confirmation, names)] if confirmation else []
    rows = [["trial", "role", *names, *heads, *feasible, *on_seeds, "settings"]]
    for row, settings in _front_rows(result):
        spreads = [spreads_text(confirmation, int(row["trial"]), names)] if confirmation else []
        values = [_objective(name, row) for name in names] + [_short(name, row.get(name)) for name in bounded]
        kept = [feasible_text(row, result) for _ in feasible]
        rows.append([trial_name(row), marked_role(row, result), *values, *kept, *spreads, settings])
    for trial, role, metrics, note in _model_rows(result):
        values = [_objective(name, metrics) if name in metrics else MISSING for name in names]
        values += [_short(name, metrics[name]) if name in metrics else MISSING for name in bounded]
        kept = [feasible_text(metrics, result) for _ in feasible]
        rows.append([trial, role, *values, *kept, *[MISSING for _ in on_seeds], note])
    return rows


def _head_on_seeds(confirmation: Confirmation, names: Sequence[str]) -> str:
    """Return the head of the column of confirmed values, such as ``ks_statistic, model_utility on seed 1``."""
    seeds = confirmation.seeds
    return f"{', '.join(names)} on {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def bounds_text(result: SearchResult, name: str) -> str:
    """Return a metric with its bounds, such as ``kl_retain ≤ 0.01``; the name alone before they are known."""
    return " and ".join(str(limit) for limit in result.limits if limit.metric == name) or name


def constraints_text(result: SearchResult) -> str:
    """Return the bounds of all constraints; a bound that waits for the target's value as it was given."""
    if result.limits:
        return ", ".join(map(str, result.limits))
    given = result.config.search.constraints.items()
    return ", ".join(f"{name} {side} {bound}" for name, each in given for side, bound in each.given().items())


def feasible_text(metrics: Mapping[Any, Any], result: SearchResult) -> str:
    """Return ``yes``, or ``no:`` and the metrics that violate a constraint; a dash if some metric is missing."""
    broken = [
        limit.metric
        for limit in result.limits
        if metrics.get(limit.metric) is not None and not limit.is_kept(metrics[limit.metric])
    ]
    if broken:
        return f"no: {', '.join(dict.fromkeys(broken))}"
    known = result.limits and all(metrics.get(limit.metric) is not None for limit in result.limits)
    return "yes" if known else MISSING


def _front_rows(result: SearchResult) -> Iterator[tuple[dict[Any, Any], str]]:
    """Yield each row of the front, with the settings that the row shows."""
    with results_only(result.display_path):
        baselines = baseline_settings(result.config)
    varied = [key for key, parameter in result.config.search.space.items() if parameter.kind != "fixed"]
    for _, row in result.front.iterrows():
        # A method whose module is not imported states no settings for its baselines.
        keys = list(baselines.get(row["role"], ())) or varied
        shown = [(key.partition(".")[2], _short(key, row[key])) for key in keys if key in row]
        yield dict(row), ", ".join(f"{name} {value}" for name, value in shown if value)


def _model_rows(result: SearchResult) -> Iterator[tuple[str, str, Mapping[Any, Any], str]]:
    """Yield trial, role, metrics and note of the untouched target, if it is not on the front, and the reference."""
    names = list(result.config.objectives)
    target = complete_of_role(result.trials, TARGET)
    for _, row in target[~target["trial"].isin(result.front["trial"])].iterrows():
        yield str(row["trial"]), TARGET, dict(row), "not on the front"
    reference = result.reference()
    if any(name in reference for name in names):
        yield MISSING, "retrained", reference, "the reference"


def marked_role(row: Any, result: SearchResult) -> str:
    """Return a trial's role, with a mark if the trial is the knee or its model has no utility left.

    Such a trial may stand on the front, since nothing forgets more than a model that knows nothing.

    Args:
        row: the trial's row of the front's table.
        result: the search.
    """
    title = "the knee" if result.has_feasible else "the nearest to the constraints"
    knee = f", {title}" if row["trial"] == result.chosen.number else ""
    lost = lost_objectives(row, result.trials, result.config)
    return f"{row['role']}{knee}" + (f", useless: {lost[0]} {metric_text(lost[0], row[lost[0]])}" if lost else "")


def sentence_nothing_forgotten(result: SearchResult) -> str:
    """Return that no trial, or none that keeps the constraints, forgets more than the target."""
    kept = " that keeps the constraints" if result.limits else ""
    return f"No trial{kept} has a better {next(iter(result.config.objectives))} than the untouched target"


def sentence_beyond_knee(result: SearchResult) -> str:
    """Return which trial of the front forgets most, if that is not the knee; empty otherwise.

    If both ran again on further seeds, the sentence says whether the trial forgets more there too.
    """
    point, names = result.beyond_knee, list(result.config.objectives)[:2]
    if point is None:
        return ""
    knee = result.knee.values
    values = [f"{name} {_short(name, point.values[name])}, the knee {_short(name, knee[name])}" for name in names]
    there = _beyond_knee_on_seeds(result, point.number, names[0])
    return f"{point.name.capitalize()} forgets more than the knee ({'; '.join(values)}){there}"


def _beyond_knee_on_seeds(result: SearchResult, trial: int, name: str) -> str:
    """Return the end of a sentence on the first objective on further seeds; empty if the two trials lack such runs."""
    confirmation = result.confirmation
    if confirmation is None:
        return ""
    own, knee = (confirmation.spread(number, name) for number in (trial, result.knee.number))
    if own is None or knee is None:
        return ""
    lower, higher = own.mean < knee.mean, own.mean > knee.mean
    forgets_more = lower if result.config.objectives[name] == "min" else higher
    what = "and on" if forgets_more else "but not on"
    seeds = counted(len(confirmation.seeds), "further seed")
    return f", {what} {seeds} ({_short(name, own.mean)}, the knee {_short(name, knee.mean)})"


def _objective(name: str, values: Mapping[Any, Any]) -> str:
    """Return an objective's value as text, and for the KS statistic the p-value and the number of rows, if known."""
    text = _short(name, values[name])
    p, rows = (values.get(key) for key in ("forget_quality", "forget_quality_rows"))
    if name != "ks_statistic" or p is None or rows is None or p != p or rows != rows:
        return text
    return f"{text} (p {p:.2g}, n {rows:.0f})"


def _short(name: str, value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else metric_text(name, value)
    return "" if value is None else str(value)
