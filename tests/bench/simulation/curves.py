"""Learning curves for simulated searches: tables of real runs' histories, and made-up curves from a seed."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofmu.errors import DataError
from tune.space.objectives import Direction

SYNTHETIC_OBJECTIVES: dict[str, Direction] = {"ks_statistic": "min", "model_utility": "max"}
SYNTHETIC_SETTINGS = ("strength", "repair", "conflict", "inner_steps", "outer_steps", "open_share")
"""The settings of :func:`synthetic_curve`, in order, each scaled to [0, 1]."""


@dataclass(frozen=True)
class Curve:
    """One trial, round by round."""

    costs: npt.NDArray[np.float64]
    """Gradient evaluations spent by the end of each round, shape (rounds,), never falling."""
    values: npt.NDArray[np.float64]
    """The objectives after each round, in their own directions, shape (rounds, objectives); NaN where missing."""

    @property
    def rounds(self) -> int:
        """Return how many rounds the trial runs."""
        return len(self.costs)


def read_curves(path: str | Path, objectives: Sequence[str]) -> list[Curve]:
    """Read one curve per trial, in the order in which the trials first appear.

    JSON lines hold ``{"trial": …, "round": …, "cost": …, "objectives": {name: value or null}}``; a ``.csv`` file has
    the columns ``trial``, ``round``, ``cost`` and one per objective, an empty cell for a missing value. ``cost``
    counts gradient evaluations since the trial's start. Rows of one trial may come in any order.

    Raises:
        DataError: the file cannot be read, lacks a field, or a trial's rounds are not 1, 2, 3 … with a cost that
            never falls.
    """
    source = Path(path)
    rows: defaultdict[str, list[tuple[int, float, list[float]]]] = defaultdict(list)
    try:
        for row, cells in _csv_rows(source) if source.suffix == ".csv" else _json_rows(source):
            values = [_number(cells.get(name)) for name in objectives]
            rows[str(row["trial"])].append((int(row["round"]), float(row["cost"]), values))
    except (OSError, KeyError, TypeError, ValueError) as error:
        problem = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise DataError(f"The table of curves {source} {problem}: give trial, round, cost and objectives") from error
    return [_curve(source, trial, sorted(found, key=lambda row: row[0])) for trial, found in rows.items()]


def _json_rows(source: Path) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    with source.open(encoding="utf-8") as stream:
        for line in filter(str.strip, stream):
            row = json.loads(line)
            yield row, row["objectives"]


def _csv_rows(source: Path) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    with source.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            yield row, row


def _number(value: Any) -> float:
    return math.nan if value is None or value == "" else float(value)


def _curve(source: Path, trial: str, rows: list[tuple[int, float, list[float]]]) -> Curve:
    costs = np.array([cost for _, cost, _ in rows])
    if [number for number, _, _ in rows] != list(range(1, len(rows) + 1)) or (np.diff(costs, prepend=0.0) < 0).any():
        raise DataError(
            f"The table of curves {source} has trial {trial} with rounds that are not 1, 2, 3 … or a cost that falls: "
            "give every round once, its cost counted from the trial's start"
        )
    return Curve(costs, np.array([values for _, _, values in rows]))


def synthetic_curve(settings: Sequence[float], seed: int) -> Curve:
    """Return a made-up curve of the two objectives in ``SYNTHETIC_OBJECTIVES``; ``seed`` draws its noise.

    Synthetic: shaped after what runs of OFMU look like, fitted to none. The KS statistic falls from near 1, the
    faster the larger ``strength`` × ``inner_steps``, to a floor that a strong ``conflict`` of the two gradients
    lifts. Utility falls with every round's forgetting and comes back at the pace of ``repair``, up to a ceiling; a
    fast start so digs deeper and may overtake late, and too strong an ascent lets utility collapse for good. The
    noise is that of a score from a few dozen rows: KS statistics are multiples of 1/32.

    Args:
        settings: one number in [0, 1] for each of ``SYNTHETIC_SETTINGS``. They set 12 to 36 rounds, 1 to 5 inner
            steps, and the share of minibatches whose hinge is open (4 gradient evaluations for an inner step and 12
            for an outer one; 2 and 5 where it is closed).
        seed: for the noise and for which minibatches' hinge is open.
    """
    strength, repair, conflict, inner, outer, open_share = (float(setting) for setting in settings)
    random = np.random.default_rng([seed, 0x0F])
    rounds, steps = 12 + round(24 * outer), 1 + round(4 * inner)
    pull = 0.02 * 12.0**strength * steps**0.7
    floor = 0.12 + 0.5 * conflict * (1 - 0.6 * repair)
    ceiling = 0.86 - 0.15 * repair * conflict
    forgotten, lost, collapsed, rows = 0.0, 0.02, 0.0, []
    for _ in range(rounds):
        forgotten += pull * (1 - forgotten)
        lost += pull * (0.25 + 0.75 * conflict) * (1 - 0.5 * forgotten)
        lost *= 1 - 0.05 - 0.3 * repair
        collapsed += max(0.0, pull - 0.45) * (1.2 - repair)
        rows.append((floor + (1 - floor) * (1 - forgotten), ceiling - lost - collapsed))
    values = np.array(rows) + random.normal(0, (0.035, 0.008), (rounds, 2))
    values[:, 0] = np.round(values[:, 0] * 32) / 32
    opened = random.binomial(steps + 1, open_share, rounds)
    outer_open = random.random(rounds) < open_share
    costs = 2.0 * (steps + 1) + 2 * opened + np.where(outer_open, 8, 3)
    return Curve(np.cumsum(costs), np.clip(values, 0, 1))
