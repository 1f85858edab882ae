"""Charts of a search's report: the front, parallel coordinates, hypervolume over cost, and importances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from ofmu.io.text import counted
from ofmu.reports.charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    TOOLTIP,
    VIOLET,
    Chart,
    Series,
    chart,
    new_figure,
    plain,
    show_sizes,
)
from ofmu.reports.numbers import metric_text, number
from tune.pareto import GrowingFront, as_costs, hypervolume, reference_point
from tune.results.tables import trial_name, violations_of
from tune.rundir.seed_runs import ConfirmedPoint
from tune.space.constraints import Limits
from tune.space.objectives import Direction
from tune.space.parameter import Space
from tune.study.baselines import PUBLISHED, TARGET

CONFIRMED = "#0f9fb5"
"""The colour of points on further seeds."""
_EDGE = 0.04
"""Room around the points, as a share of their range."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """The complete trials that the charts show, one row each."""

    rows: pd.DataFrame
    on_front: Sequence[bool]
    tips: Sequence[str]
    """What the tooltip of each point says."""
    chosen: int | None
    """The row's index of the chosen trial; None without a front."""
    is_feasible: Sequence[bool] = ()
    """Whether each trial keeps all constraints. Empty: there are no constraints."""

    @property
    def styles(self) -> list[tuple[str, str, int]]:
        """Marker, colour and size of each trial."""
        kept = self.is_feasible or [True] * len(self.rows)
        return [_style(*each) for each in zip(self.rows["role"], self.on_front, kept, strict=True)]


def front_chart(
    points: Points,
    objectives: Mapping[str, Direction],
    retrained: Mapping[str, float],
    reference: Mapping[str, float],
    confirmed: Sequence[ConfirmedPoint] = (),
    limits: Limits = (),
) -> Chart:
    """Return the chart of the first two objectives. A third objective is the points' colour.

    Args:
        points: the complete trials.
        objectives: each objective's direction.
        retrained: the retrained model's metrics.
        reference: the hypervolume's reference point.
        confirmed: the points that ran again on further seeds.
        limits: the bounds of constraints. What violates a bound on one of the two objectives is shaded.
    """
    # Bokeh takes a second to import.
    from bokeh.models import ColumnDataSource, HoverTool, TapTool

    x, y, *third = objectives
    rows = points.rows
    plot = new_figure(
        better_label(x, objectives[x]),
        better_label(y, objectives[y]),
        height=460,
        points=len(rows),
        tools="pan,box_zoom,wheel_zoom,box_select,reset,save",
    )
    show_sizes(plot, x, y)
    if not third and (not points.is_feasible or any(points.is_feasible)):
        _draw_staircase(plot, points, objectives, reference)
    _shade_infeasible(plot, limits, x, y)
    styles = points.styles
    colors = _by_value(rows[third[0]].to_numpy(float)) if third else [style[1] for style in styles]
    source = ColumnDataSource(
        {
            "x": rows[x].to_numpy(float),
            "y": rows[y].to_numpy(float),
            "marker": [style[0] for style in styles],
            "color": colors,
            "size": [style[2] for style in styles],
            "tip": list(points.tips),
        },
        name="points",
    )
    dots = plot.scatter(
        "x", "y", source=source, marker="marker", color="color", size="size", alpha=0.9, nonselection_alpha=0.18
    )
    if points.chosen is not None:
        chosen = rows.iloc[points.chosen]
        plot.scatter([chosen[x]], [chosen[y]], size=19, fill_color=None, line_color=VIOLET, line_width=2.5)
    if confirmed:
        _draw_confirmed(plot, confirmed, x, y)
    if x in retrained and y in retrained:
        tip = f"retrained model\n{x} {metric_text(x, retrained[x])}\n{y} {metric_text(y, retrained[y])}"
        star = ColumnDataSource({"x": [retrained[x]], "y": [retrained[y]], "tip": [tip]})
        marker = plot.scatter("x", "y", source=star, marker="star", size=20, color=GREEN)
        plot.add_tools(HoverTool(renderers=[marker], tooltips=TOOLTIP))
    plot.add_tools(HoverTool(renderers=[dots], tooltips=TOOLTIP), TapTool(renderers=[dots]))
    colour = f" Colour: {third[0]}, from dark (low) to bright (high)." if third else ""
    bounds = (
        f" The shaded part violates {' or '.join(map(str, shown))}."
        if (shown := [each for each in limits if each.metric in (x, y)])
        else ""
    )
    note = "Each point is a complete trial. Hover for its settings, metrics and cost; tap to find it below."
    return chart(
        plot,
        name="front",
        title="The front",
        note=f"{note}{colour}{bounds}",
        alt=_front_alt(points, objectives, retrained),
        legend=_front_legend(points, x in retrained and y in retrained, bool(confirmed)),
    )


def _shade_infeasible(plot: Any, limits: Limits, x: str, y: str) -> None:
    """Shade the part of the plane that violates a bound on one of the plotted objectives."""
    # Bokeh takes a second to import.
    from bokeh.models.annotations import BoxAnnotation, Span

    for limit in limits:
        if limit.metric not in (x, y):
            continue
        sides = ("right", "left") if limit.metric == x else ("top", "bottom")
        edge: dict[str, Any] = {sides[limit.side == "max"]: limit.value}
        # A box without its other edges reaches to the edges of the plot.
        plot.add_layout(BoxAnnotation(fill_color=RED, fill_alpha=0.07, line_color=None, **edge))
        dimension: Literal["height", "width"] = "height" if limit.metric == x else "width"
        plot.add_layout(Span(location=limit.value, dimension=dimension, line_color=RED, line_dash="dashed"))


def _draw_confirmed(plot: Any, confirmed: Sequence[ConfirmedPoint], x: str, y: str) -> None:
    """Draw a diamond at each confirmed point's means. Its arms are one standard deviation long."""
    # Bokeh takes a second to import.
    from bokeh.models import ColumnDataSource, HoverTool

    source = ColumnDataSource(
        {
            "x": [point.x.mean for point in confirmed],
            "y": [point.y.mean for point in confirmed],
            "left": [point.x.mean - point.x.half_length for point in confirmed],
            "right": [point.x.mean + point.x.half_length for point in confirmed],
            "bottom": [point.y.mean - point.y.half_length for point in confirmed],
            "top": [point.y.mean + point.y.half_length for point in confirmed],
            "tip": [
                f"trial {point.trial} on {counted(point.x.runs, 'further seed')}\n{x} {point.x}\n{y} {point.y}"
                for point in confirmed
            ],
        },
        name="confirmed",
    )
    plot.segment("left", "y", "right", "y", source=source, color=CONFIRMED, line_width=2)
    plot.segment("x", "bottom", "x", "top", source=source, color=CONFIRMED, line_width=2)
    marks = plot.scatter("x", "y", source=source, marker="diamond", color=CONFIRMED, size=9)
    plot.add_tools(HoverTool(renderers=[marks], tooltips=TOOLTIP))


def better_label(name: str, direction: Direction) -> str:
    """Return an objective's name with its better direction, short enough for a phone."""
    return f"{name} ({'lower' if direction == 'min' else 'higher'} is better)"


def _style(role: str, on_front: bool, is_feasible: bool) -> tuple[str, str, int]:
    """Return marker, colour and size of a trial."""
    if role == TARGET:
        return "square", RED, 11
    if role == PUBLISHED:
        return "triangle", ORANGE, 12
    if not is_feasible:
        return "x", BLUE if on_front else GREY, 10 if on_front else 8
    return ("circle", BLUE, 10) if on_front else ("circle", GREY, 8)


def _front_legend(points: Points, has_retrained: bool, has_confirmed: bool) -> tuple[Series, ...]:
    roles = set(points.rows["role"])
    kept = points.is_feasible or [True] * len(points.rows)
    off_front = [is_kept for is_kept, front in zip(kept, points.on_front, strict=True) if not front]
    shown = (
        ("on the front", "front", BLUE, any(kept)),
        ("dominated", "dominated", GREY, any(off_front)),
        ("violates a constraint", "infeasible", GREY, not all(kept)),
        ("chosen (knee)" if any(kept) else "nearest to the constraints", "chosen", VIOLET, points.chosen is not None),
        ("untouched target", "target", RED, TARGET in roles),
        ("published setting", "published", ORANGE, PUBLISHED in roles),
        ("retrained model", "retrained", GREEN, has_retrained),
        ("mean ± deviation on further seeds", "confirmed", CONFIRMED, has_confirmed),
    )
    return tuple(Series(label=label, color=color, shape=shape) for label, shape, color, is_shown in shown if is_shown)


def _front_alt(points: Points, objectives: Mapping[str, Direction], retrained: Mapping[str, float]) -> str:
    x, y = list(objectives)[:2]
    front = points.rows[list(points.on_front)]

    def place(values: Mapping[Any, Any]) -> str:
        return f"{metric_text(x, values[x], 3)} and {metric_text(y, values[y], 3)}"

    places = ", ".join(f"trial {trial_name(dict(row))} at {place(dict(row))}" for _, row in front.iterrows())
    text = f"{counted(len(points.rows), 'complete trial')} by {x} and {y}. On the front: {places or 'none'}."
    if x in retrained and y in retrained:
        text += f" The retrained model is at {place(retrained)}."
    return text


def _draw_staircase(
    plot: Any, points: Points, objectives: Mapping[str, Direction], reference: Mapping[str, float]
) -> None:
    """Draw the border of what the front dominates, and shade it up to the reference point."""
    x, y = list(objectives)[:2]
    front = points.rows[list(points.on_front)]
    if not len(front):
        return
    # The border starts at the best x and ends at the worst, where the reference point is.
    front = front.sort_values(x, ascending=objectives[x] == "min", kind="stable")
    xs, ys = front[x].to_numpy(float), front[y].to_numpy(float)
    corner_x, corner_y = reference[x], reference[y]
    border_x = [xs[0], *(value for pair in zip(xs, [*xs[1:], corner_x], strict=True) for value in pair)]
    border_y = [corner_y, *(value for level in ys for value in (level, level))]
    plot.patch([*border_x, corner_x], [*border_y, corner_y], fill_color=BLUE, fill_alpha=0.07, line_color=None)
    plot.line(border_x[1:], border_y[1:], color=BLUE, line_width=1.6, alpha=0.75)


def _by_value(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[str]:
    """Return a colour of viridis for each value."""
    # Bokeh takes a second to import.
    from bokeh.palettes import Viridis256

    low, high = np.nanmin(values), np.nanmax(values)
    shares = (values - low) / (high - low if high > low else 1.0)
    # The brightest colours cannot be seen on a white page.
    return [GREY if math.isnan(share) else Viridis256[round(225 * share)] for share in shares]


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """One axis of the parallel coordinates. It reaches from 0 to 1."""

    label: str
    places: list[float]
    """Each trial's place; NaN if the trial has no value."""
    ticks: dict[float, str]


def parallel_chart(points: Points, objectives: Mapping[str, Direction], space: Space) -> Chart:
    """Return the chart with one axis per searched setting and per objective, and one line per complete trial."""
    # Bokeh takes a second to import.
    from bokeh.core.properties import value
    from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, TapTool

    rows = points.rows
    searched = {key: spec for key, spec in space.items() if spec.kind != "fixed" and key in rows}
    axes = [_setting_axis(key, rows[key].tolist(), spec.log) for key, spec in searched.items()]
    axes += [_setting_axis(name, rows[name].tolist(), False) for name in objectives]
    plot = new_figure(
        "",
        "",
        height=360,
        points=len(rows) * len(axes),
        tools="box_select,reset,save",
        x_range=(-0.35, len(axes) - 0.55),
        y_range=(-_EDGE, 1 + _EDGE),
    )
    positions = list(range(len(axes)))
    plot.multi_line([[at, at] for at in positions], [[0, 1]] * len(axes), color=GREY, alpha=0.5)
    order = list(points.on_front)
    source = ColumnDataSource(
        {
            "xs": [positions] * len(rows),
            "ys": [list(places) for places in zip(*(axis.places for axis in axes), strict=True)],
            "color": [color for _, color, _ in points.styles],
            "alpha": [0.9 if front else 0.3 for front in order],
            "width": [2.2 if front else 1.2 for front in order],
            "tip": list(points.tips),
        },
        name="points",
    )
    lines = plot.multi_line(
        "xs", "ys", source=source, color="color", alpha="alpha", line_width="width", nonselection_alpha=0.06,
        selection_alpha=1.0, hover_line_color=VIOLET, hover_alpha=1.0,
    )  # fmt: skip
    labels = [(at + 0.03, place, text) for at, axis in enumerate(axes) for place, text in axis.ticks.items()]
    texts = plot.text(
        [at for at, _, _ in labels], [place for _, place, _ in labels], [plain(text) for _, _, text in labels],
        text_font_size="10px", text_font=value("system-ui, sans-serif"), text_baseline="middle", text_color=GREY,
    )  # fmt: skip
    texts.glyph.name = "ink"
    plot.add_tools(HoverTool(renderers=[lines], tooltips=TOOLTIP, line_policy="interp"), TapTool(renderers=[lines]))
    plot.xaxis.ticker = FixedTicker(ticks=positions)
    plot.xaxis.major_label_overrides = {at: plain(axis.label) for at, axis in zip(positions, axes, strict=True)}
    plot.xaxis.major_label_orientation = 0.45
    plot.yaxis.visible = plot.grid.visible = False
    note = "One line per complete trial, through its settings and its objectives. Lines of the front are thick."
    return chart(
        plot,
        name="parallel",
        title="Parallel coordinates",
        note=note,
        alt=f"Parallel coordinates of {counted(len(rows), 'trial')} over {', '.join(axis.label for axis in axes)}. "
        "The table of all trials has the same numbers.",
        min_width=max(560, 92 * len(axes)),
    )


def _setting_axis(key: str, values: Sequence[Any], log: bool) -> _Axis:
    label = key.partition(".")[2] if "." in key else key
    numbers = [value for value in values if _is_number(value)]
    if any(not _is_number(value) and not _is_missing(value) for value in values):
        names = list(dict.fromkeys(str(value) for value in values if not _is_missing(value)))
        place = {name: (index + 0.5) / len(names) for index, name in enumerate(names)}
        places = [math.nan if _is_missing(value) else place[str(value)] for value in values]
        return _Axis(label=label, places=places, ticks={at: name for name, at in place.items()})
    log = log and all(value > 0 for value in numbers)
    scaled = [math.log(value) if log else float(value) for value in numbers]
    low, high = (min(scaled), max(scaled)) if scaled else (0.0, 1.0)
    if high <= low or not numbers:
        places = [0.5 if _is_number(value) else math.nan for value in values]
        return _Axis(label=label, places=places, ticks={0.5: metric_text(key, numbers[0], 3)} if numbers else {})
    shares = iter([(value - low) / (high - low) for value in scaled])
    places = [next(shares) if _is_number(value) else math.nan for value in values]
    ticks = {0.0: metric_text(key, min(numbers), 3), 1.0: metric_text(key, max(numbers), 3)}
    return _Axis(label=f"{label} (log)" if log else label, places=places, ticks=ticks)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and value == value


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def hypervolume_chart(rows: pd.DataFrame, objectives: Mapping[str, Direction]) -> Chart:
    """Return the chart of the front's hypervolume over the gradient evaluations of the complete trials so far.

    Args:
        rows: the complete trials in the order of their numbers.
        objectives: each objective's direction.
    """
    # Bokeh takes a second to import.
    from bokeh.models import ColumnDataSource, DataRange1d, HoverTool

    names, directions = list(objectives), list(objectives.values())
    costs = as_costs(rows[names].to_numpy(dtype=float), directions)
    reference, front, volume, volumes = reference_point(names, costs, directions), GrowingFront(len(names)), 0.0, []
    for trial, point, violation in zip(rows["trial"], costs, violations_of(rows), strict=True):
        if front.add(int(trial), point, violation) != [int(trial)] or int(trial) in front.names:
            volume = hypervolume(front.costs, reference) if front.violation <= 0 else 0.0
        volumes.append(volume)
    has_cost = "gradient_evaluations" in rows and rows["gradient_evaluations"].notna().all()
    spent = rows["gradient_evaluations"].astype(float).cumsum() if has_cost else pd.Series(range(1, len(rows) + 1))
    x_label = "gradient evaluations" if has_cost else "complete trials"
    tips = [
        f"after trial {trial}\nhypervolume {volume:.4f}\n{x_label} {number(cost)}"
        for trial, volume, cost in zip(rows["trial"], volumes, spent, strict=True)
    ]
    source = ColumnDataSource({"x": spent.to_numpy(float), "y": volumes, "tip": tips})
    plot = new_figure(x_label, "hypervolume", height=260, points=len(rows), y_range=DataRange1d(start=0))
    plot.step("x", "y", source=source, mode="after", color=BLUE, line_width=2)
    dots = plot.scatter("x", "y", source=source, color=BLUE, size=5)
    plot.add_tools(HoverTool(renderers=[dots], tooltips=TOOLTIP))
    ends = f"From {volumes[0]:.3f} after the first trial to {volumes[-1]:.3f} after the last." if volumes else ""
    return chart(
        plot,
        name="hypervolume",
        title="Hypervolume over cost",
        note="What the front dominates, as trials end. A flat end says that more trials bring little.",
        alt=f"Hypervolume over {x_label}. {ends}",
    )
