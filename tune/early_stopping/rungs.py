"""Early stopping with several objectives: the rule that decides, from ranks, which trials continue after a rung.

The rule is asynchronous successive halving (Li et al., arXiv 1810.05934). The order inside a rung comes from
non-dominated sorting, and the order inside a front from an ε-net, as in MO-ASHA (Schmucker et al., arXiv 2106.12639).
This file uses neither Ray nor Optuna.

Rungs are fractions of a trial's own rounds. The other common resource would be gradient evaluations. In a search whose
trials differ in ``outer_steps`` and in the cost of a round, that resource has two faults. First, rungs at equal cost
would compare one trial's start with another's end: these differ in how far they are, not in how good they are. Early in
a long or expensive trial much is retained and little is forgotten; near the end of a short or cheap trial it is the
other way round. So with two objectives hardly any trial would dominate another. Second, trials that end before a rung
would never be compared, and each rung would hold another mixture of trials. At equal fractions every trial reaches
every rung, and a stopped trial saves the same share of its own cost.

On recorded curves of an earlier quickstart, random search with rungs at fractions reached the hypervolume of a full
search at .72 of the full search's gradient evaluations. With rungs at the same shares of the most expensive trial's
cost it mostly never did. To use an absolute resource, pass the resource as ``round`` and its largest value as
``total``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ofmu.errors import ConfigError
from tune.early_stopping.config import SLACK, EarlyStoppingConfig
from tune.space.objectives import Direction

Verdict = Literal["continue", "stop"]
TrialId = str | int
Costs = npt.NDArray[np.float64]


class RungScheduler:
    """Answer each report of a trial with ``continue`` or ``stop``.

    A trial is compared once at each rung, by the first report that reaches the rung. A report that reaches several
    rungs at once counts at the highest of them. Let m earlier trials be at the rung, and let b of them rank before the
    new trial. The new trial stops if b > (m − 1) / reduction_factor and another trial dominates it. Trials of better
    fronts rank before the new trial. Of the new trial's own front, those rank before it that a farthest-first ε-net
    takes earlier. Equal trials rank equally. With one objective this is the rule of Ray's ASHAScheduler, except between
    the two neighbours of the quantile: there Ray interpolates values, and this rule stops the trial.

    Only the order of an objective's values in the rung counts, so a monotone rescaling changes nothing. A report with a
    missing, NaN or infinite objective counts as dominated by every complete report, and other reports are not compared
    with it. Its trial stops at the first rung that has seen enough complete reports.

    The decisions depend only on the reports and their order.

    Raises:
        ConfigError: there is no objective, or a direction is neither ``min`` nor ``max``.
    """

    def __init__(self, directions: Mapping[str, Direction], config: EarlyStoppingConfig | None = None) -> None:
        for name, direction in directions.items():
            if direction not in ("min", "max"):
                raise ConfigError(f"The direction of the objective '{name}' is '{direction}': give 'min' or 'max'")
        if not directions:
            raise ConfigError("Early stopping needs an objective: name one in search.objectives")
        self._directions = dict(directions)
        self._config = EarlyStoppingConfig() if config is None else config
        self._rungs = [_Rung(level, len(directions)) for level in self._config.levels]
        self._reached: dict[TrialId, int] = {}
        self._stopped: set[TrialId] = set()

    def report(self, trial_id: TrialId, round: int, values: Mapping[str, float | None], total: int) -> Verdict:
        """Return whether the trial continues after ``round`` of its ``total`` rounds.

        A stopped trial stays stopped. A repeated report of a round, such as after a restart from a checkpoint, changes
        nothing. A trial is never stopped after its last round.

        Raises:
            ValueError: ``round`` is not within 1 … ``total``.
        """
        if not 1 <= round <= total:
            raise ValueError(f"Trial {trial_id} reports round {round} of {total}")
        if trial_id in self._stopped:
            return "stop"
        index = self._rung_at(round, total)
        if round == total or index <= self._reached.get(trial_id, -1):
            return "continue"
        self._reached[trial_id] = index
        if self._promotes(self._rungs[index], self._costs(values)) or round < self._config.grace_rounds:
            return "continue"
        self._stopped.add(trial_id)
        return "stop"

    def _promotes(self, rung: _Rung, costs: Costs | None) -> bool:
        """Add a new trial with these costs to the rung. Return whether the trial continues."""
        full = rung.size >= self._config.rung_size
        if costs is None:
            return not full
        promoted = not full or rung.promotes(costs, self._config.reduction_factor)
        rung.add(costs)
        return promoted

    def _rung_at(self, round: int, total: int) -> int:
        """Return the index of the highest rung that the round reaches; −1 for none."""
        return sum(round >= rung.level * total - SLACK for rung in self._rungs) - 1

    def _costs(self, values: Mapping[str, float | None]) -> Costs | None:
        """Return one cost per objective, to be minimised; None if a value is missing or not finite."""
        found = [values.get(name) for name in self._directions]
        if not all(_is_finite(value) for value in found):
            return None
        signs = [1.0 if direction == "min" else -1.0 for direction in self._directions.values()]
        return np.array(found, dtype=np.float64) * signs


class _Rung:
    """The costs of the trials at one rung, and the front of each trial. Front 0: no other trial dominates it."""

    def __init__(self, level: float, objectives: int) -> None:
        self.level = level
        self._costs: Costs = np.empty((0, objectives))
        self._front: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def size(self) -> int:
        return len(self._costs)

    def promotes(self, costs: Costs, reduction_factor: float) -> bool:
        """Return whether a new trial with these costs continues."""
        front = self._front_of(costs)
        if front == 0:
            return True
        allowed = math.floor((self.size - 1) / reduction_factor)
        ahead = int((self._front < front).sum())
        if ahead > allowed:
            return False
        peers = (self._front == front) & ~_dominates(costs, self._costs)
        return ahead + self._epsnet_rank(costs, peers) <= allowed

    def add(self, costs: Costs) -> None:
        """Add a trial. Move each trial that it pushes down by one front.

        A new trial makes the longest chain of dominators of another trial longer by at most one.
        """
        front = self._front_of(costs)
        below = np.flatnonzero(_dominates(costs, self._costs))
        below = below[np.argsort(self._front[below])]
        levels, fronts = self._front[below], self._front.copy()
        movers, level = costs[None, :], front
        while len(movers):
            start, end = np.searchsorted(levels, (level, level + 1))
            here = below[start:end]
            pushed = here[_dominates(movers[:, None, :], self._costs[here][None, :, :]).any(axis=0)]
            fronts[pushed] = level + 1
            movers, level = self._costs[pushed], level + 1
        self._costs = np.vstack((self._costs, costs))
        self._front = np.append(fronts, front)

    def _front_of(self, costs: Costs) -> int:
        above = self._front[_dominates(self._costs, costs)]
        return int(above.max()) + 1 if len(above) else 0

    def _epsnet_rank(self, costs: Costs, peers: npt.NDArray[np.bool_]) -> int:
        """Return how many other members of the new trial's front an ε-net takes before the new trial.

        The net starts with the most balanced member: the member whose worst rank is the smallest. Then it takes the
        member that is farthest from all members taken. Ranks are doubled mid-ranks among all trials of the rung. They
        are integers, so ties are exact. Tied members are taken together, so the order of arrival does not matter.
        """
        places = _doubled_ranks(np.vstack((self._costs, costs)), np.vstack((self._costs[peers], costs)))
        newcomer, worst = len(places) - 1, places.max(axis=1)
        taken = np.zeros(len(places), dtype=np.bool_)
        nearest = np.full(len(places), np.inf)
        picked = worst == worst.min()
        while not picked[newcomer]:
            taken |= picked
            squared = ((places[:, None, :] - places[picked][None, :, :]) ** 2).sum(axis=2)
            nearest = np.minimum(nearest, squared.min(axis=1))
            picked = ~taken & (nearest == nearest[~taken].max())
        return int(taken.sum())


def _dominates(one: Costs, other: Costs) -> npt.NDArray[np.bool_]:
    """Return, along the last axis, where ``one`` is at most ``other`` everywhere and below ``other`` somewhere."""
    at_most, below = one[..., 0] <= other[..., 0], one[..., 0] < other[..., 0]
    for index in range(1, one.shape[-1]):
        at_most = at_most & (one[..., index] <= other[..., index])
        below = below | (one[..., index] < other[..., index])
    found: npt.NDArray[np.bool_] = at_most & below
    return found


def _doubled_ranks(costs: Costs, members: Costs) -> npt.NDArray[np.int64]:
    """Return twice the mid-rank of each member among ``costs``, column by column."""
    columns = []
    for column, wanted in zip(np.sort(costs, axis=0).T, members.T, strict=True):
        columns.append(np.searchsorted(column, wanted, "left") + np.searchsorted(column, wanted, "right") + 1)
    return np.stack(columns, axis=1)


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
