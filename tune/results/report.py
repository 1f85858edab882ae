"""The reports of a search: trials.csv, front.csv, front.png, search.json, and the front as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from ofmu.io.files import write_bytes, write_text
from ofmu.io.plugins import results_only
from ofmu.reports.numbers import MISSING
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.rundir.search_files import SearchSummary
from tune.rundir.seed_runs import Confirmation
from tune.space.objectives import WORST, Direction
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
            knee=result.knee.number if len(result.front) else None,
        )
    )


def with_confirmation(result: SearchResult) -> pd.DataFrame:
    """Return the front's table, with mean, standard deviation and number of the runs on further seeds, if there are.

    The columns are ``<objective>_mean``, ``<objective>_deviation`` and ``confirming_runs``.
    """
    if result.confirmation is None:
        return result.front
    front = result.front.copy()
    for name in result.config.objectives:
        spreads = [result.confirmation.spread(int(trial), name) for trial in front["trial"]]
        front[f"{name}_mean"] = [spread.mean if spread else None for spread in spreads]
        front[f"{name}_deviation"] = [spread.deviation if spread else None for spread in spreads]
        front["confirming_runs"] = [spread.runs if spread else 0 for spread in spreads]
    return front


def confirmed_sentence(result: SearchResult, confirmed: float, found: float) -> str:
    """Return what the front's best points are worth on further seeds.

    Args:
        result: the result of a search that has confirmed points.
        confirmed: the hypervolume of the points' means over the further seeds.
        found: the hypervolume of the same points on the seed of the search.
    """
    seeds = len(result.confirmation.seeds) if result.confirmation else 0
    return (
        f"On {counted(seeds, 'further seed')} the best points have a hypervolume of {confirmed:.4f}; on the seed that "
        f"chose them it is {found:.4f}"
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
    confirmation = result.confirmation
    on_seeds = [f"on seeds {', '.join(map(str, confirmation.seeds))}"] if confirmation else []
    rows = [["trial", "role", *names, *on_seeds, "settings"]]
    empty = [MISSING] * len(on_seeds)
    for _, row in result.front.iterrows():
        # A method whose module is not imported states no settings for its baselines.
        keys = list(baselines.get(row["role"], ())) or varied
        shown = [(key.partition(".")[2], _short(row[key])) for key in keys if key in row]
        settings = ", ".join(f"{name} {value}" for name, value in shown if value)
        role = marked_role(row, result.config.objectives)
        spreads = [_spreads(confirmation, int(row["trial"]), names)] if confirmation else []
        rows.append([str(row["trial"]), role, *(_objective(name, dict(row)) for name in names), *spreads, settings])
    target = result.trials[(result.trials["role"] == TARGET) & (result.trials["state"] == "complete")]
    for _, row in target[~target["trial"].isin(result.front["trial"])].iterrows():
        rows.append([str(row["trial"]), TARGET, *(_objective(name, dict(row)) for name in names), *empty, "not on the front"])
    reference = result.reference()
    if any(name in reference for name in names):
        values = [_objective(name, reference) if name in reference else MISSING for name in names]
        rows.append([MISSING, "retrained", *values, *empty, "the reference"])
    return rows


def _spreads(confirmation: Confirmation, trial: int, names: Sequence[str]) -> str:
    """Return the spreads of a trial's objectives over the further seeds as text."""
    spreads = [confirmation.spread(trial, name) for name in names]
    return ", ".join(MISSING if spread is None else str(spread) for spread in spreads) if any(spreads) else MISSING


def marked_role(row: Any, objectives: Mapping[str, Direction]) -> str:
    """Return a trial's role, with a mark if the trial's model has no utility left.

    Such a trial may stand on the front, since nothing forgets more than a model that knows nothing.

    Args:
        row: the trial's row of the front's table.
        objectives: the objectives. The first one is what the search forgets by.
    """
    lost = [name for name in list(objectives)[1:] if WORST.get(name) is not None and row[name] == WORST[name]]
    return f"{row['role']}, useless: {lost[0]} {row[lost[0]]:.4g}" if lost else str(row["role"])


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
