"""The reports of a search: trials.csv, front.csv, front.png, search.json, and the front as text."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from ofmu.io.files import write_bytes, write_text
from ofmu.io.plugins import results_only
from ofmu.reports.numbers import MISSING
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.rundir.search_files import SearchSummary
from tune.space.objectives import lost_utility
from tune.study.baselines import TARGET, baseline_settings


def write_tables(result: SearchResult, seconds: float) -> None:
    """Write trials.csv, front.csv and search.json. Each file is replaced in one step.

    Args:
        result: the result to write.
        seconds: seconds of search, over all sessions.

    Raises:
        StorageError: the disk is full or refuses the write.
    """
    run = RunDirectory(result.run_dir)
    write_text(run.trials_table, result.trials.to_csv(index=False))
    write_text(run.front_table, result.front.to_csv(index=False))
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
            knee=result.knee.number if len(result.front) else None,
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
    statistic is followed by the test's p and by its number of forget rows. The last rows are the untouched target, if
    it is not on the front, and the retrained model.
    """
    names = list(result.config.objectives)
    with results_only(result.display_path):
        baselines = baseline_settings(result.config)
    varied = [key for key, parameter in result.config.search.space.items() if parameter.kind != "fixed"]
    rows = [["trial", "role", *names, "settings"]]
    for _, row in result.front.iterrows():
        # A method whose module is not imported states no settings for its baselines.
        keys = list(baselines.get(row["role"], ())) or varied
        shown = [(key.partition(".")[2], _short(row[key])) for key in keys if key in row]
        settings = ", ".join(f"{name} {value}" for name, value in shown if value)
        role = marked_role(row, result)
        rows.append([str(row["trial"]), role, *(_objective(name, dict(row)) for name in names), settings])
    target = result.trials[(result.trials["role"] == TARGET) & (result.trials["state"] == "complete")]
    for _, row in target[~target["trial"].isin(result.front["trial"])].iterrows():
        rows.append([str(row["trial"]), TARGET, *(_objective(name, dict(row)) for name in names), "not on the front"])
    reference = result.reference()
    if any(name in reference for name in names):
        values = [_objective(name, reference) if name in reference else MISSING for name in names]
        rows.append([MISSING, "retrained", *values, "the reference"])
    return rows


def marked_role(row: Any, result: SearchResult) -> str:
    """Return a trial's role, with a mark if the trial is the knee or its model has no utility left.

    Such a trial may stand on the front, since nothing forgets more than a model that knows nothing.

    Args:
        row: the trial's row of the front's table.
        result: the search.
    """
    knee = ", the knee" if row["trial"] == result.knee.number else ""
    lost = lost_utility(row, result.config.objectives)
    return f"{row['role']}{knee}" + (f", useless: {lost[0]} {row[lost[0]]:.4g}" if lost else "")


def sentence_beyond_knee(result: SearchResult) -> str:
    """Return which trial of the front forgets most, if that is not the knee; empty otherwise."""
    point, name = result.beyond_knee, next(iter(result.config.objectives))
    if point is None:
        return ""
    values = f"{name} {_short(point.values[name])}, the knee {_short(result.knee.values[name])}"
    return f"Trial {point.number} forgets more than the knee ({values})"


def _objective(name: str, values: Mapping[Any, Any]) -> str:
    """Return an objective's value as text, and for the KS statistic the p-value and the number of rows, if known."""
    text = _short(values[name])
    p, rows = (values.get(key) for key in ("forget_quality", "forget_quality_rows"))
    if name != "ks_statistic" or p is None or rows is None or p != p or rows != rows:
        return text
    return f"{text} (p {p:.2g}, n {rows:.0f})"


def _short(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return "" if value is None else str(value)
