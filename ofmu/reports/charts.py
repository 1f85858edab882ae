"""Charts of reports, drawn by Bokeh in the browser. Colours that depend on light or dark are set by ``report.js``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ofmu.reports.numbers import is_size

if TYPE_CHECKING:
    from bokeh.plotting import figure

BLUE, GREEN, RED, ORANGE, VIOLET, GREY = "#2f6fde", "#1f9d6b", "#d64550", "#d98411", "#8653d6", "#8792a2"
SERIES = (BLUE, ORANGE, "#0f9fb5", VIOLET, "#b5527f", "#7a8b2b", "#5b6b8c", "#a86b3c")
"""Colours of series, in order. Each keeps its contrast on a white and on a dark page. Red is the target's colour, and
green the retrained model's."""
TOOLTIP = (
    '<div style="max-width:27em;margin:-5px;padding:9px 12px;white-space:pre-wrap;background:var(--card);'
    'color:var(--ink);font:12px/1.45 system-ui,sans-serif">@tip</div>'
)
"""Shows the column ``tip``, whose text Bokeh escapes."""
_SVG_POINTS = 600
"""Up to so many points a chart is drawn as SVG, which prints sharply. More points are drawn faster on a canvas."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart, and its text for who cannot see it."""

    name: str
    """Its id in the page."""
    title: str
    note: str
    """One or two sentences below the title: what is drawn, and how to read it."""
    alt: str
    """What the chart shows, for a screen reader."""
    item: Mapping[str, Any]
    """What BokehJS embeds."""
    height: int
    """In pixels."""
    legend: tuple[Series, ...] = ()
    min_width: int = 0
    """On a narrower screen the chart scrolls sideways. In pixels."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """An entry of a legend."""

    label: str
    color: str
    name: str = ""
    """The name of the renderers in the plot that a click on the entry hides and shows. Empty: a click does nothing."""
    shape: str = ""
    """The class of the symbol in ``report.css``; empty for a square of the colour."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series of a line chart. Points whose y is None, NaN or infinite are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]


def plain(text: str) -> str:
    """Return a text in which Bokeh sees no TeX. For TeX it would load MathJax from the network."""
    return text.replace("$$", "$\u200b$").replace("\\[", "\\\u200b[").replace("\\(", "\\\u200b(")


def chart(plot: Any, *, name: str, **texts: Any) -> Chart:
    """Return the chart that shows a Bokeh plot. ``texts``: the other fields of :class:`Chart`."""
    # Bokeh takes a second to import.
    from bokeh.core.types import ID
    from bokeh.embed import json_item

    return Chart(name=name, item=json_item(plot, ID(name)), height=plot.height, **texts)


def new_figure(
    x_label: str, y_label: str, *, height: int = 380, points: int = 0, tools: str = "", **options: Any
) -> figure:
    """Return an empty figure that fills its place in the page.

    Args:
        x_label, y_label: the names of the axes.
        height: in pixels.
        points: number of points that will be drawn.
        tools: Bokeh's names of the tools in the toolbar. Empty: no toolbar.
        options: further options of Bokeh's ``figure``.
    """
    # Bokeh takes a second to import.
    from bokeh.plotting import figure

    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        x_axis_label=plain(x_label),
        y_axis_label=plain(y_label),
        tools=tools,
        # A toolbar above or inside the frame would lie over the points, and take their clicks.
        toolbar_location="below" if tools else None,
        output_backend="svg" if points <= _SVG_POINTS else "canvas",
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        min_border_left=8,
        **options,
    )
    # A finger on a chart scrolls the page unless the reader picks a tool.
    plot.toolbar.active_drag = plot.toolbar.active_scroll = None
    plot.toolbar.logo, plot.toolbar.autohide = None, True
    for axis in plot.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font = axis.major_label_text_font = "system-ui, sans-serif"
        axis.axis_label_text_font_size, axis.major_label_text_font_size = "12px", "11px"
        axis.minor_tick_line_color = None
    return plot


def show_sizes(plot: figure, x: str, y: str) -> None:
    """Let the axes of metrics in bytes show KiB, MiB or GiB, with ticks at round numbers of them.

    Args:
        plot: the figure.
        x, y: the metrics of its axes.
    """
    # Bokeh takes a second to import.
    from bokeh.models import AdaptiveTicker, NumeralTickFormatter

    for name, axis in ((x, plot.xaxis), (y, plot.yaxis)):
        if is_size(name):
            axis.ticker = AdaptiveTicker(base=1024, mantissas=[2**power for power in range(10)], num_minor_ticks=0)
            axis.formatter = NumeralTickFormatter(format="0.[00] ib")


def line_chart(
    lines: Sequence[Line], *, name: str, title: str, note: str, x_label: str, y_label: str, log: bool = False
) -> Chart:
    """Return a chart of one or more lines over the same quantity.

    Args:
        lines: the series.
        name, title, note: see :class:`Chart`.
        x_label, y_label: the names of the axes.
        log: whether y is logarithmic. Values that are not above 0 are then left out.
    """
    # Bokeh takes a second to import.
    from bokeh.models import ColumnDataSource, HoverTool

    points = sum(len(line.x) for line in lines)
    plot = new_figure(x_label, y_label, height=260, points=points, y_axis_type="log" if log else "linear")
    ranges, legend = [], []
    for index, line in enumerate(lines):
        known = [
            (x, y)
            for x, y in zip(line.x, line.y, strict=True)
            if y is not None and math.isfinite(y) and (y > 0 or not log)
        ]
        if not known:
            continue
        xs, ys = [x for x, _ in known], [y for _, y in known]
        ranges.append(f"{line.label}: from {ys[0]:.3g} to {ys[-1]:.3g}")
        color = SERIES[index % len(SERIES)]
        source = ColumnDataSource(
            {"x": xs, "y": ys, "tip": [f"{line.label}\n{y:.4g} at {x_label} {x:g}" for x, y in known]}
        )
        legend.append(Series(name=f"series{index}", label=line.label, color=color))
        plot.line("x", "y", source=source, line_width=2, color=color, name=legend[-1].name)
        # Points far apart, such as checks every 20 steps, are marked.
        size = 5 if len(known) <= 80 else 2
        dots = plot.scatter("x", "y", source=source, size=size, color=color, name=legend[-1].name)
        plot.add_tools(HoverTool(renderers=[dots], tooltips=TOOLTIP))
    shown = tuple(legend) if len(legend) > 1 else ()
    return chart(plot, name=name, title=title, note=note, alt=f"{title}. {'; '.join(ranges)}.", legend=shown)


def bar_chart(values: Mapping[str, float], *, name: str, title: str, note: str, x_label: str, unit: str = "") -> Chart:
    """Return a chart of horizontal bars, the first entry on top.

    Args:
        values: each bar's length, by its label.
        name, title, note: see :class:`Chart`.
        x_label: the name of the axis.
        unit: follows the number in the tooltip.
    """
    # Bokeh takes a second to import.
    from bokeh.models import ColumnDataSource, DataRange1d, HoverTool

    labels = [plain(label) for label in values]
    plot = new_figure(x_label, "", height=56 + 30 * len(labels), x_range=DataRange1d(start=0), y_range=labels[::-1])
    tips = [f"{label}\n{value:.3g}{unit}" for label, value in values.items()]
    source = ColumnDataSource({"label": labels, "value": list(values.values()), "tip": tips})
    bars = plot.hbar(y="label", right="value", height=0.62, source=source, color=BLUE, line_color=None)
    plot.add_tools(HoverTool(renderers=[bars], tooltips=TOOLTIP))
    plot.ygrid.grid_line_color, plot.yaxis.major_tick_in = None, 0
    alt = f"{title}: {', '.join(f'{label} {value:.3g}{unit}' for label, value in values.items())}."
    return chart(plot, name=name, title=title, note=note, alt=alt)
