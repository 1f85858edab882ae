"""The study's trials as tables: what really ran, what came out, and which trials form the front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tune.landmarks import KNOWN, SEARCHED
from tune.pareto import Points, as_costs, front_mask, hypervolume, reference_point

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tune.config import SearchConfig

COSTS = ("gradient_evaluations", "tokens", "seconds", "peak_memory_bytes")
"""Metrics that say what a trial cost."""

_STATES = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "pruned", "RUNNING": "running"}


def trials_table(trials: Sequence[FrozenTrial], config: SearchConfig) -> pd.DataFrame:
    """Return one row per trial that was started: number, state, role, settings, objectives, other metrics, reason.

    After a warm start, ``origin`` says from which trial of an earlier search a row comes; a trial that informs the
    sampler alone has the state ``known``, and is no part of the front.

    Settings are those that ran, which for the two landmarks may lie outside the space; a conditional setting
    that did not count is empty.
    """
    started = [trial for trial in trials if trial.state.name in _STATES]
    keys = [key for key, parameter in config.search.space.items() if parameter.kind != "fixed"]
    for trial in started:
        keys += [key for key in trial.user_attrs.get("overrides", {}) if key not in keys]
    rows = [_row(trial, config, keys) for trial in started]
    others = sorted({name for row in rows for name in row["metrics"]} - set(config.objectives))
    origins = ["origin"] if any(row["origin"] for row in rows) else []
    columns = ["trial", "state", "role", *origins, *keys, *config.objectives, *others, "reason"]
    flat = [{**row, **row["metrics"]} for row in rows]
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


def _row(trial: FrozenTrial, config: SearchConfig, keys: Sequence[str]) -> dict[str, Any]:
    attributes = trial.user_attrs
    overrides = attributes.get("overrides", {})
    base = config.shared_settings()
    role = attributes.get("role")
    settings = {}
    for key in keys:
        section, name = key.split(".")
        conditional = key in config.search.space and config.search.space[key].when and role in (SEARCHED, KNOWN)
        settings[key] = overrides.get(key, None if conditional else base[section][name])
    return {
        "trial": trial.number,
        "state": KNOWN if role == KNOWN else _STATES[trial.state.name],
        "role": role,
        "origin": attributes.get("origin"),
        **settings,
        "metrics": attributes.get("metrics", {}),
        "reason": attributes.get("reason"),
    }
