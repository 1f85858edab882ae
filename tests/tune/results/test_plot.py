"""Axes of plots in units that people read."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from tune.results.plot import axis_label, show_unit


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1.9 * 2**30, 4.1 * 2**30, ["2 GiB", "2.5 GiB", "3 GiB", "3.5 GiB", "4 GiB"]),
        (90 * 2**20, 510 * 2**20, ["100 MiB", "200 MiB", "300 MiB", "400 MiB", "500 MiB"]),
    ],
)
def test_bytes_are_shown_in_round_numbers_of_their_unit(low: float, high: float, ticks: list[str]) -> None:
    axes = Figure(figsize=(4, 3)).add_subplot()
    axes.plot([low, high], [low, high])
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    show_unit(axes.xaxis, "peak_memory_bytes")
    show_unit(axes.yaxis, "seconds")
    axes.figure.draw_without_rendering()
    shown = [tick for tick in axes.get_xticklabels() if low <= tick.get_position()[0] <= high]
    assert [tick.get_text() for tick in shown] == ticks
    assert not any("iB" in tick.get_text() for tick in axes.get_yticklabels())
    assert axis_label("peak_memory_bytes", "min") == "peak memory, lower is better"
