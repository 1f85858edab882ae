"""Charts of a comparison's report: all fronts with their ranges over the seeds, hypervolumes, and mean ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ofmu.io.text import counted
from ofmu.reports.charts import GREEN, GREY, RED, SERIES, TOOLTIP, Chart, Series, chart, new_figure, plain, show_sizes
from ofmu.reports.numbers import metric_text, number
from tune.compare.summary import MethodSummary, Summary
from tune.pareto import front_mask
from tune.results.charts import better_label
from tune.rundir.seed_runs import PointRuns


def fronts_chart(summary: Summary) -> Chart:
    """Return the chart of the first two objectives.

    A dot is a point's mean over the seeds, and its bars reach from the smallest to the largest value. A line joins the
    means of each method that no other mean of the method dominates. Runs that violate a constraint are left out.
    """
    x, y = list(summary.objectives)[:2]
    count = sum(len(method.points) for method in summary.methods)
    plot = new_figure(
        better_label(x, summary.objectives[x]),
        better_label(y, summary.objectives[y]),
        height=500,
        points=count,
        tools="pan,box_zoom,wheel_zoom,reset,save",
    )
    show_sizes(plot, x, y)
    level_style: dict[str, Any] = {"line_color": GREY, "line_alpha": 0.4, "line_dash": "dashed"}
    plot.vspan(x=list(summary.levels.forgetting), **level_style)
    plot.hspan(y=list(summary.levels.utility), **level_style)
    legend = []
    for index, method in enumerate(summary.methods):
        entry = Series(label=method.name, color=SERIES[index % len(SERIES)], name=f"method{index}")
        if _draw_method(plot, method, summary.objectives, entry):
            legend.append(entry)
    legend += _draw_models(plot, summary, x, y)
    return chart(
        plot,
        name="fronts",
        title="The fronts on other seeds",
        note="A dot is a point's mean over the seeds; its bars reach from the worst to the best seed. Dashed: the "
        "levels at which methods are compared. Click a method to hide it."
        + (" Runs that violate a constraint are left out." if summary.limits else ""),
        alt=f"Fronts of {', '.join(method.name for method in summary.methods)} by {x} and {y}. "
        "The table of points has the same numbers.",
        legend=tuple(legend),
    )


def values_of(point: PointRuns, names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the objectives of a point's runs that count, shape (runs, objectives)."""
    runs = [[values[name] for name in names] for run in point.runs if (values := run.valid_metrics) is not None]
    return np.array(runs, dtype=float).reshape(-1, len(names))


def _draw_method(plot: Any, method: MethodSummary, objectives: Mapping[str, str], entry: Series) -> bool:
    """Draw one method. Return whether the method has a run that counts."""
    # Bokeh takes a second to import.
    from bokeh.models import ColumnDataSource, HoverTool

    names = list(objectives)[:2]
    found = [(point, runs) for point in method.points if len(runs := values_of(point, names))]
    if not found:
        return False
    means, lows, highs = (np.array([f(runs) for _, runs in found]) for f in (_mean, _low, _high))
    style = {"color": entry.color, "name": entry.name}
    plot.segment(lows[:, 0], means[:, 1], highs[:, 0], means[:, 1], alpha=0.6, line_width=1.4, **style)
    plot.segment(means[:, 0], lows[:, 1], means[:, 0], highs[:, 1], alpha=0.6, line_width=1.4, **style)
    signs = np.array([1.0 if objectives[name] == "min" else -1.0 for name in names])
    front = means[front_mask(means * signs)]
    front = front[np.argsort(front[:, 0], kind="stable")]
    plot.line(front[:, 0], front[:, 1], line_width=1.6, alpha=0.8, **style)
    tips = [_tip(method, point, runs, names) for point, runs in found]
    source = ColumnDataSource({"x": means[:, 0], "y": means[:, 1], "tip": tips})
    dots = plot.scatter("x", "y", source=source, size=9, **style)
    plot.add_tools(HoverTool(renderers=[dots], tooltips=TOOLTIP))
    return True


def _mean(runs: np.ndarray[Any, Any]) -> Any:
    return runs.mean(axis=0)


def _low(runs: np.ndarray[Any, Any]) -> Any:
    return runs.min(axis=0)


def _high(runs: np.ndarray[Any, Any]) -> Any:
    return runs.max(axis=0)


def _tip(method: MethodSummary, point: PointRuns, runs: np.ndarray[Any, Any], names: Sequence[str]) -> str:
    ranges = [f"{name} {mean_and_range(column, name)}" for name, column in zip(names, runs.T, strict=True)]
    settings = ", ".join(f"{key.partition('.')[2]} {number(value)}" for key, value in point.settings.items())
    return "\n".join([f"{method.name}, trial {point.trial}", *ranges, counted(len(runs), "seed"), "", settings])


def mean_and_range(values: np.ndarray[Any, Any], name: str) -> str:
    """Return the mean of at least one value of a metric, and the smallest and the largest value, as text."""
    mean, low, high = (metric_text(name, float(value), 3) for value in (values.mean(), values.min(), values.max()))
    return f"{mean} ({low} … {high})"


def _draw_models(plot: Any, summary: Summary, x: str, y: str) -> list[Series]:
    """Draw the untouched target and the retrained model, and return their entries of the legend."""
    # Bokeh takes a second to import.
    from bokeh.models import ColumnDataSource, HoverTool

    models = (
        ("untouched target", summary.target, "square", RED, "target", 11),
        ("retrained model", summary.reference or {}, "star", GREEN, "retrained", 20),
    )
    entries = []
    for label, values, marker, color, shape, size in models:
        if x not in values or y not in values:
            continue
        tip = f"{label}\n{x} {metric_text(x, values[x])}\n{y} {metric_text(y, values[y])}"
        source = ColumnDataSource({"x": [values[x]], "y": [values[y]], "tip": [tip]})
        drawn = plot.scatter("x", "y", source=source, marker=marker, color=color, size=size)
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=TOOLTIP))
        entries.append(Series(label=label, color=color, shape=shape))
    return entries


def hypervolume_chart(summary: Summary) -> Chart:
    """Return the chart of each method's mean hypervolume with its interval and its seeds."""
    # Bokeh takes a second to import.
    from bokeh.models import ColumnDataSource, HoverTool

    labels = [plain(method.name) for method in summary.methods]
    plot = new_figure("hypervolume", "", height=60 + 34 * len(labels), y_range=labels[::-1])
    texts = []
    for index, (label, method) in enumerate(zip(labels, summary.methods, strict=True)):
        color = SERIES[index % len(SERIES)]
        interval = method.hypervolume_interval
        text = f"{method.name}: {method.hypervolume:.3f}"
        if interval is not None:
            plot.segment([interval[0]], [label], [interval[1]], [label], color=color, line_width=3, alpha=0.45)
            text += f" [{interval[0]:.3f}, {interval[1]:.3f}]"
        plot.scatter(list(method.hypervolumes), [label] * len(method.hypervolumes), size=5, color=color, alpha=0.5)
        source = ColumnDataSource({"x": [method.hypervolume], "y": [label], "tip": [text]})
        dot = plot.scatter("x", "y", source=source, size=11, color=color)
        plot.add_tools(HoverTool(renderers=[dot], tooltips=TOOLTIP))
        texts.append(text)
    return chart(
        plot,
        name="hypervolumes",
        title="Hypervolume",
        note="Large dot: mean over the seeds. Bar: its bootstrapped 95 % interval. Small dots: single seeds.",
        alt=f"Hypervolume of each method: {'; '.join(texts)}.",
    )
