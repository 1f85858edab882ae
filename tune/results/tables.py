"""The study's trials as tables: settings, objectives and metrics of every trial, and the trials of the front."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ofmu.errors import RunError
from tune.pareto import Points, Violations, as_costs, constrained_front_mask, hypervolume, reference_point
from tune.space.constraints import stored_violations, total_violation
from tune.space.objectives import lost_utility
from tune.study.baselines import PRIOR, SAMPLED, TARGET

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tune.config import SearchConfig

_COST_COLUMNS = ("gradient_evaluations", "tokens", "seconds", "peak_memory_bytes")
"""Metrics that say what a trial cost, in the order of the front's columns."""

SELECTED_ROUND = "selected_round"
"""The metric that says from which round of its run a trial's model comes, if that need not be the last one."""

VIOLATION = "violation"
"""The column of the violations of constraints."""

_STATES = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "pruned", "RUNNING": "running"}


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """What the tables show of one trial. After a trial ended, its row never changes."""

    trial: int
    """The trial's number."""
    state: str
    """complete, failed, pruned or running; for a trial of an earlier search, its role."""
    role: str | None
    origin: str | None
    """The trial of an earlier search that this trial comes from."""
    overrides: Mapping[str, Any]
    """What the trial set, by dotted config key."""
    metrics: Mapping[str, Any]
    reason: str | None
    """Why the trial failed or was pruned."""
    violation: float = 0.0
    """The sum of its violations of the constraints. 0: the trial keeps all of them."""

    @classmethod
    def from_trial(cls, trial: FrozenTrial) -> TrialRow:
        """Return the row of a trial that was started."""
        attributes = trial.user_attrs
        role = attributes.get("role")
        return cls(
            trial=trial.number,
            state=PRIOR if role == PRIOR else _STATES[trial.state.name],
            role=role,
            origin=attributes.get("origin"),
            overrides=attributes.get("overrides", {}),
            metrics=attributes.get("metrics", {}),
            reason=attributes.get("reason"),
            violation=total_violation(stored_violations(trial.system_attrs)),
        )


def trials_table(trials: Sequence[FrozenTrial], config: SearchConfig) -> pd.DataFrame:
    """Return one row per trial that was started: number, state, role, settings, objectives, other metrics, reason.

    Of a search with constraints, the column ``violation`` has the sum of a complete trial's violations. It is 0 for a
    feasible trial. After a warm start, the column ``origin`` names the trial of the earlier search. A trial of an
    earlier search that only informs the sampler has its role as state, and is not a candidate for the front.

    The settings are those that ran. The two baselines may run settings outside of the space. A conditional setting
    that was not active is empty.
    """
    started = [trial for trial in trials if trial.state.name in _STATES]
    return table_of([TrialRow.from_trial(trial) for trial in started], config)


def table_of(rows: Sequence[TrialRow], config: SearchConfig) -> pd.DataFrame:
    """Return the table of the rows, in their order; see :func:`trials_table` for the columns."""
    constrained = [VIOLATION] if config.search.constraints else []
    searched = {key: parameter for key, parameter in config.search.space.items() if parameter.kind != "fixed"}
    keys = list(dict.fromkeys([*searched, *(key for row in rows for key in row.overrides)]))
    others = sorted({name for row in rows for name in row.metrics} - set(config.objectives))
    origins = ["origin"] if any(row.origin for row in rows) else []
    shared = config.shared_settings()
    # A stored trial of a damaged or foreign study may have set a key that the config lacks.
    base = {key: shared.get(section, {}).get(name) for key in keys for section, _, name in [key.partition(".")]}
    conditional = {key for key in keys if key in config.search.space and config.search.space[key].when}
    inactive = {**base, **dict.fromkeys(conditional)}
    flat = [
        {
            "trial": row.trial,
            "state": row.state,
            "role": row.role,
            "origin": row.origin,
            "reason": row.reason,
            VIOLATION: row.violation if row.state in ("complete", PRIOR) else None,
            **(inactive if row.role in (SAMPLED, PRIOR) else base),
            **row.overrides,
            **row.metrics,
        }
        for row in rows
    ]
    columns = ["trial", "state", "role", *origins, *keys, *config.objectives, *constrained, *others, "reason"]
    table = pd.DataFrame(flat, columns=pd.Index(columns))
    # A column without a number has the type object, which cannot be compared.
    return table.astype(dict.fromkeys([*config.objectives, *constrained], float))


def own_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a search's own trials. After a warm start, the table also has trials of earlier searches.

    Trials of earlier searches cost this search nothing, so counts and costs leave them out.
    """
    return trials[trials["state"] != PRIOR]


def front_table(trials: pd.DataFrame, config: SearchConfig) -> pd.DataFrame:
    """Return the rows of the complete trials that no other trial dominates, sorted by the first objective.

    Feasible trials dominate all others. If no trial is feasible, the rows are those that violate the constraints least.

    Columns: the trial's number, objectives, settings, costs, then the role and all other metrics.
    """
    complete = trials[trials["state"] == "complete"]
    front = complete[constrained_front_mask(costs_of(complete, config), violations_of(complete))]
    front = front.drop(columns=["state", "reason"])
    if len(front):
        front = front.dropna(axis="columns", how="all")
    constrained = list(config.search.constraints)
    settings = [name for name in front.columns if "." in name and name not in constrained]
    first = ["trial", SELECTED_ROUND, *config.objectives, VIOLATION, *constrained, *settings, *_COST_COLUMNS]
    order = [*dict.fromkeys(name for name in first if name in front), *front.columns.difference(first, sort=False)]
    return front[order].sort_values(next(iter(config.objectives)), kind="stable").reset_index(drop=True)


def selected_round(values: Mapping[Any, Any]) -> int | None:
    """Return the round from which a trial's model comes; None if the trial stands for the end of its run.

    Args:
        values: the trial's metrics, or its row of a table.
    """
    round = values.get(SELECTED_ROUND)
    return None if round is None or round != round else int(round)


def trial_name(values: Mapping[Any, Any]) -> str:
    """Return how a point is called, such as ``17``, or ``17, round 24`` if the search selects rounds.

    Args:
        values: a row of a table of trials.
    """
    round = selected_round(values)
    return f"{values['trial']}" if round is None else f"{values['trial']}, round {round}"


def split_round(text: str) -> tuple[str, int | None]:
    """Return trial and round of a name such as ``17, round 24`` or ``17:24``; of any other text, the text and None."""
    found = re.fullmatch(r"(?:trial )?([0-9]+)(?:, ?round |:)([0-9]{1,9})", text.strip())
    return (text, None) if found is None else (found[1], int(found[2]))


def check_round(values: Mapping[str, Any], round: int | None) -> None:
    """Check that a trial stands for the round that somebody named. None passes.

    Raises:
        RunError: the trial stands for another round, and no other one was kept.
    """
    own = selected_round(values)
    if round is None or round == own:
        return
    known = f"stands for round {own}" if own is not None else "stands for the end of its run"
    raise RunError(f"Trial {values['trial']} {known}, and no other round was kept: pick {values['trial']}")


def violations_of(rows: pd.DataFrame) -> Violations:
    """Return the rows' violations of the constraints, shape (rows,); zeros for a search without constraints."""
    return rows[VIOLATION].to_numpy(dtype=float) if VIOLATION in rows else np.zeros(len(rows))


def lost_objectives(row: Mapping[Any, Any], trials: pd.DataFrame, config: SearchConfig) -> list[str]:
    """Return the objectives of a trial of which nothing is left: see :func:`tune.space.objectives.lost_utility`."""
    return lost_utility(row, config.objectives, target_metrics(trials))


def target_metrics(trials: pd.DataFrame) -> dict[Any, Any]:
    """Return the row of the untouched target; empty before its trial is complete."""
    target = complete_of_role(trials, TARGET)
    return dict(target.iloc[0]) if len(target) else {}


def complete_of_role(trials: pd.DataFrame, role: str) -> pd.DataFrame:
    """Return the complete trials of a role, such as a baseline."""
    return trials[(trials["role"] == role) & (trials["state"] == "complete")]


def feasible_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the complete trials that keep all constraints."""
    return (
        rows[(rows["state"] == "complete") & (rows[VIOLATION] <= 0)]
        if VIOLATION in rows
        else rows[rows["state"] == "complete"]
    )


def costs_of(rows: pd.DataFrame, config: SearchConfig) -> Points:
    """Return the rows' objectives, shape (rows, objectives), all to be minimised."""
    names = list(config.objectives)
    return as_costs(rows[names].to_numpy(dtype=float), list(config.objectives.values()))


def hypervolume_of(trials: pd.DataFrame, config: SearchConfig) -> tuple[float, dict[str, float]]:
    """Return the front's hypervolume and its reference point, in the objectives' own directions.

    Only feasible trials have a hypervolume.
    """
    complete = trials[trials["state"] == "complete"]
    directions = list(config.objectives.values())
    costs = costs_of(complete, config)
    reference = reference_point(list(config.objectives), costs, directions)
    own = as_costs([reference.tolist()], directions)[0]
    return hypervolume(costs[violations_of(complete) <= 0], reference), dict(
        zip(config.objectives, own.tolist(), strict=True)
    )
