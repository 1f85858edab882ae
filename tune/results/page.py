"""The page of a search, finished or running."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ofmu.reports.charts import Chart, bar_chart
from ofmu.reports.numbers import MISSING, big_number, duration, memory, metric_text, number
from ofmu.reports.page import render
from ofmu.reports.verdict import ks_numbers, verdict
from ofmu.run_files import RunFiles, read_stored
from tune.results.charts import Points, front_chart, hypervolume_chart, parallel_chart
from tune.results.confirmed import confirmed_sentence, spreads_text
from tune.results.importances import importances, load_trials
from tune.results.report import bounds_text, feasible_text, sentence_beyond_knee, sentence_nothing_forgotten
from tune.results.result import SearchResult
from tune.results.tables import (
    SELECTED_ROUND,
    VIOLATION,
    complete_of_role,
    feasible_rows,
    own_trials,
    selected_round,
    trial_name,
    violations_of,
)
from tune.rundir.search_dir import RunDirectory
from tune.space.constraints import broken_sentence
from tune.study.baselines import PUBLISHED, TARGET

_FOLDER = Path(__file__).parent / "templates"
_MAX_TRIALS = 1000
"""Largest number of trials that a page shows, so that the page stays below 5 MB."""
_HEADLINES = ("model_utility", "extraction_strength", "forget_probability", "average_gap", "testing_accuracy")
"""Metrics of the summary's columns, beside the objectives and the KS test."""
_COSTS = {
    "gradient_evaluations": ("gradient evaluations", big_number),
    "seconds": ("time", duration),
    "peak_memory_bytes": ("peak memory", memory),
}


def search_page(result: SearchResult, *, live: bool = False) -> str:
    """Return the page of a search.

    Args:
        result: the search's trials and front.
        live: whether the page asks its server for changes.
    """
    run = RunDirectory(result.run_dir, result.uri)
    trials = _shown_trials(result)
    complete = trials[trials["state"] == "complete"].reset_index(drop=True)
    points = _points(result, complete)
    charts = _charts(result, points)
    environment = read_stored(run.environment_file) or {}
    summary = run.read_summary()
    return render(
        "search.html.j2",
        _FOLDER,
        charts=charts,
        live=live,
        title=f"Search in {result.run_dir.name} · ofmu",
        kind="Search",
        heading=f"{_method(result)} on {result.config.data.source}",
        sub=result.display_path,
        verdict=_verdict(result),
        tiles=_tiles(result, 0.0 if summary is None else summary.seconds),
        summary=_summary_table(result),
        plots={chart.name: chart for chart in charts},
        failures=_failures(result),
        columns=_columns(result, trials),
        rows=_table_rows(result, run, trials, complete),
        left_out=len(result.trials) - len(trials),
        started=str(environment.get("time", "")),
        command=shlex.join([str(word) for word in environment.get("command", [])]),
        resume=shlex.join(_resume(result)),
    )


def _resume(result: SearchResult) -> list[str]:
    """Return the words of the command that continues the search."""
    return ["ofmu", "search", "--resume", result.display_path, *(["--allow-code"] if result.config.plugins else [])]


def _shown_trials(result: SearchResult) -> pd.DataFrame:
    """Return all trials, or if these are too many: the front, the baselines, some failures, and the newest trials."""
    trials = result.trials
    if len(trials) <= _MAX_TRIALS:
        return trials
    first = trials["trial"].isin(result.front["trial"]) | trials["role"].isin([TARGET, PUBLISHED])
    order = pd.concat([trials[first], trials[~first & (trials["state"] == "failed")], trials[::-1]])
    return order.drop_duplicates("trial").head(max(_MAX_TRIALS, int(first.sum()))).sort_values("trial")


def _points(result: SearchResult, complete: pd.DataFrame) -> Points:
    front = set(result.front["trial"])
    chosen = result.chosen.number if front else None
    places = complete.index[complete["trial"] == chosen].tolist()
    return Points(
        rows=complete,
        on_front=[trial in front for trial in complete["trial"]],
        is_feasible=(violations_of(complete) <= 0).tolist() if result.config.search.constraints else (),
        tips=[_tip(result, row) for _, row in complete.iterrows()],
        chosen=places[0] if places else None,
    )


def _tip(result: SearchResult, row: pd.Series[Any]) -> str:
    """Return the text of a trial's tooltip: its role, then objectives, settings, metrics and cost."""
    searched = [key for key, spec in result.config.search.space.items() if spec.kind != "fixed"]
    objectives = list(result.config.objectives)
    costs = [f"{label} {form(row[name])}" for name, (label, form) in _COSTS.items() if _is_known(row.get(name))]
    left = {"trial", SELECTED_ROUND, "state", "role", "origin", "reason", VIOLATION, *objectives, *_COSTS}
    metrics = [name for name in row.index if name not in left and "." not in name]
    settings = [f"{key.partition('.')[2]} {number(row[key])}" for key in searched if _is_known(row.get(key))]
    known = [f"{name} {metric_text(name, row[name], 3)}" for name in metrics if _is_known(row[name])]
    lines = [
        f"trial {trial_name(dict(row))}, {row['role']}",
        *(f"{name} {metric_text(name, row[name])}" for name in objectives),
    ]
    if broken := broken_sentence(dict(row), result.limits):
        lines.append(f"violates the constraints: {broken}")
    blocks = {"settings": settings, "metrics": known, "cost": costs}
    lines += [f"\n{title}: {', '.join(words)}" for title, words in blocks.items() if words]
    return "\n".join(lines)


def _charts(result: SearchResult, points: Points) -> list[Chart]:
    if not len(points.rows):
        return []
    objectives = result.config.objectives
    charts = [
        front_chart(
            points,
            objectives,
            result.reference(),
            result.hypervolume_reference,
            result.confirmed_points(),
            result.limits,
        ),
        parallel_chart(points, objectives, result.config.search.space),
        hypervolume_chart(points.rows, objectives),
    ]
    shares = importances(load_trials(RunDirectory(result.run_dir).study_file), list(objectives.values()))
    if shares:
        charts.append(
            bar_chart(
                {name.partition(".")[2]: share for name, share in shares.items()},
                name="importances",
                title="What decides",
                note="Share of each searched setting in whether a trial is among the best, by PED-ANOVA.",
                x_label="share",
            )
        )
    return charts


def _method(result: SearchResult) -> str:
    method = result.config.method
    variant = getattr(method, "variant", None)
    return f"{method.name.upper()} ({variant})" if variant else method.name.upper()


def _verdict(result: SearchResult) -> str:
    if not len(result.front):
        return "No trial is complete yet."
    knee = result.chosen
    values = ", ".join(f"{name} {metric_text(name, knee.values[name], 3)}" for name in result.config.objectives)
    text = f"The chosen point is {knee.name}, the knee of the front: {values}."
    if sentence := result.nearest_sentence:
        text = f"{sentence}. It has {values}."
    if not result.forgets_more_than_target:
        text += f" {sentence_nothing_forgotten(result)}."
    if beyond := sentence_beyond_knee(result):
        text += f" {beyond}."
    if result.confirmation and any(point.trial == knee.number for point in result.confirmation.points):
        names, seeds = list(result.config.objectives), ", ".join(map(str, result.confirmation.seeds))
        known = spreads_text(result.confirmation, knee.number, names)
        text += f" On the seeds {seeds} the knee has {' and '.join(names)} of {known}."
    if confirmed := result.confirmed_hypervolumes:
        text += f" {confirmed_sentence(result, *confirmed)}."
    target = _of_role(result, TARGET)
    return f"{text} {verdict(knee.values, {} if target is None else {'target': target}, 'it')}".strip()


def _of_role(result: SearchResult, role: str) -> dict[str, Any] | None:
    """Return the values of a baseline's trial; None if it is not complete."""
    rows = complete_of_role(result.trials, role)
    return None if not len(rows) else {str(key): value for key, value in rows.iloc[0].dropna().items()}


def _tiles(result: SearchResult, seconds: float) -> list[dict[str, str]]:
    states = result.trials["state"].value_counts()
    counts = [f"{states.get(state, 0)} {state}" for state in ("failed", "pruned", "running") if states.get(state, 0)]
    corner = ", ".join(f"{name} {metric_text(name, value, 3)}" for name, value in result.hypervolume_reference.items())
    own = own_trials(result.trials)
    spent = own["gradient_evaluations"].sum() if "gradient_evaluations" in own else None
    asked = result.config.search.num_trials
    return [
        {"label": "Trials complete", "value": f"{states.get('complete', 0)} of {asked}", "note": ", ".join(counts)},
        *_feasible_tile(result),
        {"label": "Points on the front", "value": str(len(result.front)), "note": ""},
        {"label": "Hypervolume", "value": f"{result.hypervolume:.4f}", "note": f"up to {corner}"},
        {"label": "Gradient evaluations", "value": big_number(spent), "note": ""},
        {"label": "Time", "value": duration(seconds), "note": "over all sessions"},
    ]


def _feasible_tile(result: SearchResult) -> list[dict[str, str]]:
    if not result.config.search.constraints:
        return []
    count = str(len(feasible_rows(result.trials)))
    return [{"label": "Trials that keep all constraints", "value": count, "note": ", ".join(map(str, result.limits))}]


def _summary_table(result: SearchResult) -> dict[str, Any]:
    """Return the header and the rows that compare the chosen point with the two models and the published setting."""
    models: dict[str, tuple[str, Mapping[str, Any] | None]] = {
        "untouched target": ("target", _of_role(result, TARGET)),
        "published setting": ("published", _of_role(result, PUBLISHED)),
        "chosen (knee)" if result.has_feasible else "nearest to the constraints": (
            "chosen",
            result.chosen.values if len(result.front) else None,
        ),
        "retrained model": ("retrained", result.reference() or None),
    }
    known = {name: (key, values) for name, (key, values) in models.items() if values}
    names = list(dict.fromkeys([*result.config.measured, *_HEADLINES]))
    names = [name for name in names if any(name in values for _, values in known.values())]
    rows = [
        {
            "key": key,
            "name": name,
            "cells": [metric_text(metric, values.get(metric)) for metric in names],
            "ks": ks_numbers(values),
        }
        for name, (key, values) in known.items()
    ]
    return {"names": names, "rows": rows, "has_ks": any(row["ks"] for row in rows)}


def _failures(result: SearchResult) -> list[dict[str, Any]]:
    """Return the reasons of failed and pruned trials with the numbers of the trials, the most frequent first."""
    ended = result.trials[result.trials["state"].isin(["failed", "pruned"])]
    groups = ended.fillna({"reason": "no reason was stored"}).groupby(["state", "reason"], sort=False)["trial"]
    found = [{"state": state, "reason": reason, "trials": list(numbers)} for (state, reason), numbers in groups]
    return sorted(found, key=lambda group: -len(group["trials"]))


def _columns(result: SearchResult, trials: pd.DataFrame) -> list[dict[str, Any]]:
    def column(label: str, name: str, *, numeric: bool = False, command: bool = False) -> dict[str, Any]:
        return {"label": label, "name": name, "numeric": numeric, "command": command, "hint": name}

    directions = {"min": "↓", "max": "↑"}
    bounded = [name for name in result.config.search.constraints if name not in result.config.objectives]
    searched = [key for key, spec in result.config.search.space.items() if spec.kind != "fixed" and key in trials]
    return [
        column("trial", "trial", numeric=True),
        *([column("round", SELECTED_ROUND, numeric=True)] if SELECTED_ROUND in trials else []),
        column("state", "state"),
        column("role", "role"),
        column("front", "front"),
        *([column("feasible", "feasible")] if result.config.search.constraints else []),
        *(column(f"{name} {directions[way]}", name, numeric=True) for name, way in result.config.objectives.items()),
        *(column(bounds_text(result, name), name, numeric=True) for name in bounded if name in trials),
        *(column(key.partition(".")[2], key, numeric=True) for key in searched),
        *(column(label, name, numeric=True) for name, (label, _) in _COSTS.items() if name in trials),
        column("command", "command", command=True),
    ]


def _table_rows(
    result: SearchResult, run: RunDirectory, trials: pd.DataFrame, complete: pd.DataFrame
) -> list[dict[str, Any]]:
    front = set(result.front["trial"])
    places = {int(trial): index for index, trial in enumerate(complete["trial"])}
    columns = _columns(result, trials)
    rows = []
    for _, row in trials.iterrows():
        trial = int(row["trial"])
        extra = {"front": "yes" if trial in front else "", "command": _command(result, run, dict(row), trial in front)}
        if result.config.search.constraints and row["state"] == "complete":
            extra["feasible"] = feasible_text(dict(row), result)
        cells = [_cell(column["name"], extra.get(column["name"], row.get(column["name"]))) for column in columns]
        rows.append({"point": places.get(trial), "cells": cells})
    return rows


def _cell(name: str, value: Any) -> tuple[str, Any]:
    """Return a cell's text and the value by which it is sorted."""
    if not _is_known(value):
        return MISSING, ""
    if name in _COSTS:
        return _COSTS[name][1](value), value
    return metric_text(name, value), value


def _command(result: SearchResult, run: RunDirectory, row: Mapping[Any, Any], on_front: bool) -> str:
    """Return the command that copies a trial's model, or else runs its settings again; empty if neither is possible.

    A run of the settings ends after the last round, so it does not make the model of an earlier, selected round.
    """
    trial = int(row["trial"])
    files, keep = RunFiles(run.trial(trial)), result.config.search.keep_models
    is_kept = files.model.is_dir() if result.uri is None else keep == "all" or (keep == "front" and on_front)
    if is_kept and files.metrics.is_file() | (result.uri is not None):
        return shlex.join(["ofmu", "export", result.display_path, "--pick", str(trial), "--output", "DIR"])
    if result.uri is None and files.config.is_file() and selected_round(row) is None:
        return shlex.join(["ofmu", "unlearn", str(files.config), "--output", "DIR"])
    return ""


def _is_known(value: Any) -> bool:
    return value is not None and value == value
