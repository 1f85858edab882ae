"""The plot of a search's front, from tables and objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from ofmu.io.text import counted
from ofmu.reports.numbers import is_size, memory
from tune.results.tables import feasible_rows, selected_round, trial_name
from tune.study.baselines import PUBLISHED, TARGET

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from tune.rundir.seed_runs import ConfirmedPoint
    from tune.space.constraints import Limits
    from tune.space.objectives import Direction

_LABELS = {
    "ks_statistic": "KS distance D to the retrained model (0 … 1)",
    "model_utility": "model utility (0 … 1)",
    "extraction_strength": "extraction strength on the forget set (0 … 1)",
    "gradient_evaluations": "gradient evaluations",
    "seconds": "seconds per trial",
    "peak_memory_bytes": "peak memory",
}


def front_figure(
    trials: pd.DataFrame,
    front: pd.DataFrame,
    objectives: Mapping[str, Direction],
    *,
    hypervolume: float,
    knee: int | None,
    retrained: Mapping[str, float],
    caption: str,
    confirmed: Sequence[ConfirmedPoint] = (),
    limits: Limits = (),
) -> Figure:
    """Return a plot of the first two objectives. A third objective is the points' colour.

    Args:
        trials: the table of all trials.
        front: the table of the front's trials.
        objectives: each objective's direction.
        hypervolume: the front's hypervolume, for the title.
        knee: number of the knee's trial; None without a front.
        retrained: the retrained model's metrics. The model is left out unless both plotted objectives are there.
        caption: text below the plot.
        confirmed: the points that ran again on further seeds.
        limits: the bounds of constraints. The part of the plot that violates a bound on a plotted objective is shaded.
    """
    # Matplotlib is slow to import, and most users of a result plot nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x, y, *third = list(objectives)
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    complete = trials[trials["state"] == "complete"]
    feasible = feasible_rows(trials)
    ordered = front.sort_values([x, y])
    if third and len(complete):
        dots = axes.scatter(complete[x], complete[y], c=complete[third[0]], s=24, cmap="viridis", label="trials")
        bar = figure.colorbar(dots, ax=axes, label=_label(third[0]))
        show_unit(bar.ax.yaxis, third[0])
        axes.scatter(ordered[x], ordered[y], s=60, facecolors="none", edgecolors="tab:blue", label="front")
    else:
        dominated = feasible[~feasible["trial"].isin(front["trial"])]
        axes.scatter(dominated[x], dominated[y], s=20, color="0.6", label="dominated trials")
        label = "front" if len(feasible) else "nearest to the constraints"
        axes.plot(ordered[x], ordered[y], "-o", color="tab:blue", markersize=6, label=label)
    broken = complete[~complete["trial"].isin(feasible["trial"])]
    if len(broken):
        axes.scatter(broken[x], broken[y], s=26, marker="x", color="0.45", linewidths=1, label="violates a constraint")
    if knee is not None:
        row = complete[complete["trial"] == knee].iloc[0]
        label = "knee" if len(feasible) else "nearest"
        axes.annotate(
            label if selected_round(dict(row)) is None else f"{label}: trial {trial_name(dict(row))}",
            (float(row[x]), float(row[y])),
            xytext=(6, -12),
            textcoords="offset points",
            fontsize=8,
        )
    _draw_baselines(axes, complete, x, y)
    if x in retrained and y in retrained:
        axes.scatter([retrained[x]], [retrained[y]], s=120, marker="*", color="tab:green", label="retrained", zorder=3)
    if confirmed:
        _draw_confirmed(axes, confirmed)
    _shade_infeasible(axes, limits, x, y)
    axes.set_xlabel(axis_label(x, objectives[x]))
    axes.set_ylabel(axis_label(y, objectives[y]))
    show_unit(axes.xaxis, x)
    show_unit(axes.yaxis, y)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize=8)
    failed = int((trials["state"] == "failed").sum())
    axes.set_title(
        f"{counted(len(complete), 'trial')} complete, {failed} failed, hypervolume {hypervolume:.3f}", fontsize=10
    )
    figure.supxlabel(caption, fontsize=7, color="0.4")
    return figure


def show_unit(axis: Axis, metric: str) -> None:
    """Let the axis of a number of bytes have ticks at round numbers of MiB or GiB. The data keep bytes."""
    # Matplotlib is slow to import, and most users of a result plot nothing.
    from matplotlib.ticker import MaxNLocator

    if not is_size(metric):
        return
    unit = 2**30 if max(map(abs, axis.get_view_interval())) >= 2**30 else 2**20

    class UnitLocator(MaxNLocator):
        """Places ticks in units."""

        def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
            """Return the places of the ticks in bytes."""
            return [place * unit for place in super().tick_values(vmin / unit, vmax / unit)]

    axis.set_major_locator(UnitLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(lambda value, _: memory(value))


def axis_label(name: str, direction: Direction) -> str:
    """Return an objective's name with its unit and its better direction."""
    return f"{_label(name)}, {'lower' if direction == 'min' else 'higher'} is better"


def _label(name: str) -> str:
    return _LABELS.get(name, name.replace("_", " "))


def _draw_confirmed(axes: Axes, confirmed: Sequence[ConfirmedPoint]) -> None:
    axes.errorbar(
        [point.x.mean for point in confirmed],
        [point.y.mean for point in confirmed],
        xerr=[point.x.half_length for point in confirmed],
        yerr=[point.y.half_length for point in confirmed],
        fmt="d",
        color="tab:cyan",
        capsize=2,
        label="mean ± deviation on further seeds",
    )


def _shade_infeasible(axes: Axes, limits: Limits, x: str, y: str) -> None:
    """Shade what violates a bound on a plotted objective. The limits of the axes stay, so that all points stay seen."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for limit in limits:
        if limit.metric == x:
            edge = left if limit.side == "min" else right
            axes.axvspan(edge, limit.value, color="tab:red", alpha=0.08, lw=0)
            axes.axvline(limit.value, color="tab:red", alpha=0.5, lw=1, ls="--")
        elif limit.metric == y:
            edge = bottom if limit.side == "min" else top
            axes.axhspan(edge, limit.value, color="tab:red", alpha=0.08, lw=0)
            axes.axhline(limit.value, color="tab:red", alpha=0.5, lw=1, ls="--")
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _draw_baselines(axes: Axes, complete: pd.DataFrame, x: str, y: str) -> None:
    marks = ((TARGET, "s", "tab:red", "untouched target"), (PUBLISHED, "^", "tab:orange", "published setting"))
    for role, marker, color, label in marks:
        rows = complete[complete["role"] == role]
        if len(rows):
            axes.scatter(rows[x], rows[y], s=70, marker=marker, color=color, label=label, zorder=3)
