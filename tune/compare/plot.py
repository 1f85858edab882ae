"""The plot of all methods' fronts, with their ranges over the seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ofmu.io.text import counted
from tune.compare.summary import MethodSummary, Summary
from tune.pareto import front_mask
from tune.results.plot import axis_label, show_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def fronts_figure(summary: Summary) -> Figure:
    """Return a plot of the first two objectives.

    A dot is a point's mean over the seeds. Its bars reach from the smallest to the largest value. A line joins the
    means of each method that no other mean of the method dominates. Runs that violate a constraint are left out.
    """
    # Matplotlib is slow to import, and most users of a result plot nothing.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colors = colormaps["tab20" if len(summary.methods) > 10 else "tab10"]
    for index, method in enumerate(summary.methods):
        _draw_method(axes, method, summary, colors(index))
    x, y = list(summary.objectives)[:2]
    axes.scatter([summary.target[x]], [summary.target[y]], s=70, marker="s", color="0.2", label="untouched target")
    if summary.reference and x in summary.reference and y in summary.reference:
        position = [summary.reference[x]], [summary.reference[y]]
        axes.scatter(*position, s=130, marker="*", color="tab:green", label="retrained", zorder=3)
    for level in summary.levels.forgetting:
        axes.axvline(level, color="0.85", linewidth=0.8, zorder=0)
    for level in summary.levels.utility:
        axes.axhline(level, color="0.85", linewidth=0.8, zorder=0)
    axes.set_xlabel(axis_label(x, summary.objectives[x]))
    axes.set_ylabel(axis_label(y, summary.objectives[y]))
    show_unit(axes.xaxis, x)
    show_unit(axes.yaxis, y)
    axes.legend(loc="best", fontsize=8)
    title = f"Fronts run again on {counted(len(summary.seeds), 'seed')}; grey lines: where methods are compared"
    axes.set_title(title, fontsize=10)
    return figure


def _draw_method(axes: Axes, method: MethodSummary, summary: Summary, color: tuple[float, ...]) -> None:
    names = list(summary.objectives)[:2]
    points = []
    for point in method.points:
        runs = [[values[name] for name in names] for run in point.runs if (values := run.valid_metrics) is not None]
        if runs:
            points.append(np.array(runs, dtype=float))
    if not points:
        axes.plot([], [], "o", color=color, label=f"{method.name}: no point")
        return
    means = np.array([runs.mean(axis=0) for runs in points])
    lows = np.array([runs.min(axis=0) for runs in points])
    highs = np.array([runs.max(axis=0) for runs in points])
    axes.errorbar(
        means[:, 0],
        means[:, 1],
        xerr=np.clip([means[:, 0] - lows[:, 0], highs[:, 0] - means[:, 0]], 0, None),
        yerr=np.clip([means[:, 1] - lows[:, 1], highs[:, 1] - means[:, 1]], 0, None),
        fmt="o",
        markersize=5,
        linewidth=1,
        alpha=0.8,
        color=color,
        label=f"{method.name} (hypervolume {method.hypervolume:.3f})",
    )
    signs = np.array([1.0 if summary.objectives[name] == "min" else -1.0 for name in names])
    front = means[front_mask(means * signs)]
    front = front[np.argsort(front[:, 0], kind="stable")]
    axes.plot(front[:, 0], front[:, 1], color=color, linewidth=1.2)
