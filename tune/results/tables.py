"""The study's trials as tables: what really ran, what came out, and which trials form the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tune.results.pareto import Points, as_costs, front_mask, hypervolume, reference_point
from tune.study.baselines import PRIOR, SAMPLED

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tune.config import SearchConfig

COSTS = ("gradient_evaluations", "tokens", "seconds", "peak_memory_bytes")
"""Metrics that say what a trial cost."""

_STATES = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "pruned", "RUNNING": "running"}


Row = Mapping[str, Any]
"""What is told of one trial, see :func:`row_of`."""


def trials_table(trials: Sequence[FrozenTrial], config: SearchConfig) -> pd.DataFrame:
    """Return one row per trial that was started: number, state, role, settings, objectives, other metrics, reason.

    After a warm start, ``origin`` says from which trial of an earlier search a row comes; a trial that informs the
    sampler alone has the state ``prior``, and is no part of the front.

    Settings are those that ran, which for the two landmarks may lie outside the space; a conditional setting
    that did not count is empty.
    """
    return table_of([row_of(trial) for trial in trials if was_started(trial)], config)


def was_started(trial: FrozenTrial) -> bool:
    """Return whether a trial runs or ran, and so has a row."""
    return trial.state.name in _STATES


def row_of(trial: FrozenTrial) -> Row:
    """Return what the tables take from a trial; of one that has ended, it never changes."""
    attributes = trial.user_attrs
    role = attributes.get("role")
    return {
        "trial": trial.number,
        "state": PRIOR if role == PRIOR else _STATES[trial.state.name],
        "role": role,
        "origin": attributes.get("origin"),
        "overrides": attributes.get("overrides", {}),
        "metrics": attributes.get("metrics", {}),
        "reason": attributes.get("reason"),
    }


def table_of(rows: Sequence[Row], config: SearchConfig) -> pd.DataFrame:
    """Return the rows, by number, as :func:`trials_table` does."""
    searched = {key: parameter for key, parameter in config.search.space.items() if parameter.kind != "fixed"}
    keys = list(dict.fromkeys([*searched, *(key for row in rows for key in row["overrides"])]))
    others = sorted({name for row in rows for name in row["metrics"]} - set(config.objectives))
    origins = ["origin"] if any(row["origin"] for row in rows) else []
    shared = config.shared_settings()
    base = {key: shared[section][name] for key in keys for section, name in [key.split(".")]}
    conditional = {key for key in keys if key in config.search.space and config.search.space[key].when}
    inactive = {**base, **dict.fromkeys(conditional)}
    flat = [
        {
            **{name: row[name] for name in ("trial", "state", "role", "origin", "reason")},
            **(inactive if row["role"] in (SAMPLED, PRIOR) else base),
            **row["overrides"],
            **row["metrics"],
        }
        for row in rows
    ]
    columns = ["trial", "state", "role", *origins, *keys, *config.objectives, *others, "reason"]
    table = pd.DataFrame(flat, columns=pd.Index(columns))
    # A column without a single number would be of type object and could not be compared.
    return table.astype(dict.fromkeys(config.objectives, float))


def front_table(trials: pd.DataFrame, config: SearchConfig) -> pd.DataFrame:
    """Return the rows of the complete trials that no other one dominates, by the first objective.

    Columns: the trial's number, objectives, settings, costs, and then the role and all other metrics.
    """
    complete = trials[trials["state"] == "complete"]
    front = complete[front_mask(costs_of(complete, config))] if len(complete) else complete
    front = front.drop(columns=["state", "reason"])
    if len(front):
        front = front.dropna(axis="columns", how="all")
    settings = [name for name in front.columns if "." in name]
    first = ["trial", *config.objectives, *settings, *COSTS]
    order = [*dict.fromkeys(name for name in first if name in front), *front.columns.difference(first, sort=False)]
    return front[order].sort_values(next(iter(config.objectives)), kind="stable").reset_index(drop=True)


def costs_of(rows: pd.DataFrame, config: SearchConfig) -> Points:
    """Return the rows' objectives, all to be minimised."""
    names = list(config.objectives)
    return as_costs(rows[names].to_numpy(dtype=float), list(config.objectives.values()))


def hypervolume_of(trials: pd.DataFrame, config: SearchConfig) -> tuple[float, dict[str, float]]:
    """Return the front's hypervolume and the reference point, in the objectives' own directions."""
    complete = trials[trials["state"] == "complete"]
    directions = list(config.objectives.values())
    costs = costs_of(complete, config)
    corner = reference_point(list(config.objectives), costs, directions)
    own = as_costs([corner.tolist()], directions)[0]
    return hypervolume(costs, corner), dict(zip(config.objectives, own.tolist(), strict=True))
