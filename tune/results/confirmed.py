"""The front's best points on further seeds, as columns and as text."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ofmu.io.text import counted
from ofmu.reports.numbers import MISSING
from tune.results.result import SearchResult
from tune.rundir.seed_runs import Confirmation


def with_confirmation(result: SearchResult) -> pd.DataFrame:
    """Return the front's table, with mean, standard deviation and number of the runs on further seeds, if any.

    The columns are ``<metric>_mean``, ``<metric>_deviation`` and ``confirming_runs``. The metrics are the objectives
    and those that have constraints.
    """
    if result.confirmation is None:
        return result.front
    front = result.front.copy()
    for name in result.config.measured:
        spreads = [result.confirmation.spread(int(trial), name) for trial in front["trial"]]
        front[f"{name}_mean"] = [spread.mean if spread else None for spread in spreads]
        front[f"{name}_deviation"] = [spread.deviation if spread else None for spread in spreads]
        front["confirming_runs"] = [spread.runs if spread else 0 for spread in spreads]
    return front


def confirmed_sentence(result: SearchResult, confirmed: float, found: float) -> str:
    """Return what the front's best points are worth on further seeds.

    Args:
        result: the result of a search that has confirmed points.
        confirmed: the hypervolume of the points' means over the further seeds.
        found: the hypervolume of the same points on the seed of the search.
    """
    seeds = len(result.confirmation.seeds) if result.confirmation else 0
    return (
        f"On {counted(seeds, 'further seed')} the best points have a hypervolume of {confirmed:.4f}; on the seed that "
        f"chose them it is {found:.4f}"
    )


def spreads_text(confirmation: Confirmation, trial: int, names: Sequence[str]) -> str:
    """Return means and standard deviations of a trial's objectives over the further seeds as text."""
    spreads = {name: confirmation.spread(trial, name) for name in names}
    texts = [MISSING if spread is None else spread.text(name) for name, spread in spreads.items()]
    return ", ".join(texts) if any(spreads.values()) else MISSING
