"""The front of a search as a short table of text, for Python's ``print``."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import pandas as pd

from ofmu.io.console_table import aligned_lines
from ofmu.reports.numbers import MISSING, big_number, duration, metric_text, number
from tune.results.tables import trial_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tune.config import SearchConfig

_COSTS = {"gradient_evaluations": ("gradient evaluations", big_number), "seconds": ("time", duration)}
"""The costs that the table shows: head, and form of a value."""
_WIDTH = 120
"""Characters of a line. Settings that do not fit beside the objectives stand below them."""
_INDENT = " " * 7


def front_lines(front: pd.DataFrame, config: SearchConfig, knee: int | None) -> list[str]:
    """Return the front's trials as aligned lines: objectives, costs, and the settings that the search varies.

    Args:
        front: the trials of the front, as :func:`tune.results.tables.front_table` returns them.
        config: the search.
        knee: the number of the knee; None if no trial keeps the constraints.
    """
    costs = [name for name in _COSTS if name in front]
    rows = [["trial", "role", *config.objectives, *(_COSTS[name][0] for name in costs)]]
    settings = ["settings"]
    for row in front.to_dict("records"):
        role = f"{row['role']}{', knee' if row['trial'] == knee else ''}"
        values = [metric_text(name, row[name], 3) for name in config.objectives]
        values += [_COSTS[name][1](row[name]) if row[name] == row[name] else MISSING for name in costs]
        rows.append([trial_name(row), role, *values])
        settings.append(_settings(row, config))
    beside = aligned_lines([[*row, text] for row, text in zip(rows, settings, strict=True)])
    if max(map(len, beside)) <= _WIDTH:
        return beside
    lines = aligned_lines(rows)
    wrapped = [textwrap.wrap(text, _WIDTH - len(_INDENT)) for text in settings]
    wrapped[0] = []
    return [
        text for line, parts in zip(lines, wrapped, strict=True) for text in (line, *(_INDENT + part for part in parts))
    ]


def _settings(row: Mapping[Any, Any], config: SearchConfig) -> str:
    """Return the settings of a trial, such as ``steps 12, lr 0.001``. A setting that was not active is left out."""
    searched = [key for key, spec in config.search.space.items() if spec.kind != "fixed"]
    shown = [(key.partition(".")[2], number(row.get(key), 3)) for key in searched]
    return ", ".join(f"{name} {value}" for name, value in shown if value != MISSING)
