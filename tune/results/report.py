"""The files a search leaves: trials.csv, front.csv, front.png and search.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ofmu.io.files import storage_errors, write_json, write_text
from tune.rundir.search_dir import RunDirectory
from tune.study.baselines import PUBLISHED, TARGET, baseline_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tune.results.result import SearchResult
    from tune.space.objectives import Direction

_UNITS = {
    "ks_statistic": "KS distance D to the retrained model (0 … 1)",
    "model_utility": "model utility (0 … 1)",
    "extraction_strength": "extraction strength on the forget set (0 … 1)",
    "gradient_evaluations": "gradient evaluations",
    "seconds": "seconds per trial",
    "peak_memory_bytes": "peak memory (bytes)",
}


def write_tables(result: SearchResult, seconds: float) -> None:
    """Write trials.csv, front.csv and search.json, each whole or not at all.

    Raises:
        StorageError: the disk is full or refuses the write.
    """
    run = RunDirectory(result.run_dir)
    write_text(run.path / "trials.csv", result.trials.to_csv(index=False))
    write_text(run.path / "front.csv", result.front.to_csv(index=False))
    states = result.trials["state"]
    summary = {
        "complete": int((states == "complete").sum()),
        "failed": int((states == "failed").sum()),
        "pruned": int((states == "pruned").sum()),
        "asked": result.config.search.num_trials,
        "seconds": round(seconds, 3),
        "objectives": result.config.objectives,
        "hypervolume": result.hypervolume,
        "hypervolume_reference": result.hypervolume_reference,
        "front": result.front["trial"].tolist(),
        "knee": result.knee.number if len(result.front) else None,
    }
    write_json(run.path / "search.json", summary)


def write_picture(result: SearchResult) -> Path:
    """Write front.png, whole or not at all, and return its path.

    Raises:
        StorageError: the disk is full or refuses the write.
    """
    path = result.run_dir / "front.png"
    partial = path.with_name("front.partial.png")
    with storage_errors(path):
        result.plot(partial)
        partial.replace(path)
    return path


def front_figure(result: SearchResult) -> Figure:
    """Return the picture of the first two objectives; a third one is the points' colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(result.config.objectives)
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    complete = result.trials[result.trials["state"] == "complete"]
    _draw_trials(figure, axes, complete, result)
    _draw_landmarks(axes, complete, result)
    for name, label in ((names[0], axes.set_xlabel), (names[1], axes.set_ylabel)):
        label(axis_label(name, result.config.objectives[name]))
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize=8)
    failed = int((result.trials["state"] == "failed").sum())
    axes.set_title(
        f"{len(complete)} trials complete, {failed} failed, hypervolume {result.hypervolume:.3f}", fontsize=10
    )
    figure.supxlabel(f"config {config_hash(result)} · seed {result.config.seed}", fontsize=7, color="0.4")
    return figure


def axis_label(name: str, direction: Direction) -> str:
    """Return an objective's name with its unit and the way in which it is better."""
    way = "lower" if direction == "min" else "higher"
    return f"{_UNITS.get(name, name.replace('_', ' '))}, {way} is better"


def config_hash(result: SearchResult) -> str:
    """Return a short hash of the search's config, to tell pictures apart."""
    text = json.dumps(result.config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _draw_trials(figure: Figure, axes: Axes, complete: pd.DataFrame, result: SearchResult) -> None:
    x, y, *third = list(result.config.objectives)
    dominated = complete[~complete["trial"].isin(result.front["trial"])]
    front = result.front.sort_values([x, y])
    if third and len(complete):
        dots = axes.scatter(complete[x], complete[y], c=complete[third[0]], s=24, cmap="viridis", label="trials")
        figure.colorbar(dots, ax=axes, label=_UNITS.get(third[0], third[0].replace("_", " ")))
        axes.scatter(front[x], front[y], s=60, facecolors="none", edgecolors="tab:blue", label="front")
    else:
        axes.scatter(dominated[x], dominated[y], s=20, color="0.6", label="dominated trials")
        axes.plot(front[x], front[y], "-o", color="tab:blue", markersize=6, label="front")
    if len(front):
        knee = complete[complete["trial"] == result.knee.number].iloc[0]
        axes.annotate("knee", (float(knee[x]), float(knee[y])), xytext=(6, -12), textcoords="offset points", fontsize=8)


def _draw_landmarks(axes: Axes, complete: pd.DataFrame, result: SearchResult) -> None:
    x, y = list(result.config.objectives)[:2]
    marks = ((TARGET, "s", "tab:red", "untouched target"), (PUBLISHED, "^", "tab:orange", "the paper's setting"))
    for role, marker, color, label in marks:
        rows = complete[complete["role"] == role]
        if len(rows):
            axes.scatter(rows[x], rows[y], s=70, marker=marker, color=color, label=label, zorder=3)
    reference = result.reference()
    if x in reference and y in reference:
        axes.scatter([reference[x]], [reference[y]], s=120, marker="*", color="tab:green", label="retrained", zorder=3)


def format_front(result: SearchResult) -> list[list[str]]:
    """Return the front as rows of text: a header, then per point its number, role, objectives and settings.

    Settings are those that the search varied; for the paper's setting, all that it sets.
    """
    names = list(result.config.objectives)
    baselines = baseline_settings(result.config)
    varied = [key for key, parameter in result.config.search.space.items() if parameter.kind != "fixed"]
    rows = [["trial", "role", *names, "settings"]]
    for _, row in result.front.iterrows():
        keys = list(baselines[row["role"]]) if row["role"] in baselines else varied
        shown = [(key.partition(".")[2], _short(row[key])) for key in keys if key in row]
        settings = ", ".join(f"{name} {value}" for name, value in shown if value)
        rows.append([str(row["trial"]), str(row["role"]), *(_short(row[name]) for name in names), settings])
    return rows


def _short(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return "" if value is None else str(value)
