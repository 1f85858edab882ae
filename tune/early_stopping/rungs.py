"""Early stopping with several objectives: which trials go on past a rung, decided on ranks alone.

Asynchronous successive halving (Li et al., arXiv 1810.05934), with the order inside a rung taken from non-dominated
sorting, and inside a front from an ε-net, as in MO-ASHA (Schmucker et al., arXiv 2106.12639). No Ray, no Optuna.

**Where a rung stands.** Rungs are fractions of a trial's *own* rounds. The other common resource would be gradient
evaluations, and in a search whose trials differ in ``outer_steps`` and in the cost of a round it goes wrong twice. At
equal cost a long or cheap trial is met early on its way, much retained and little forgotten, and a short or dear one
near its end: with two objectives they lie apart *along* the trade-off, hardly any dominates another, and the rung
tells nothing about the quality of either. And a trial that ends before a rung's cost is never judged, so that each
rung holds another mixture of trials. At equal fraction all have gone the same part of their way, every trial meets
every rung, and a stopped one gives back the same share of its own cost.
On real curves of an earlier quickstart, random search with rungs at fractions reached a full search's hypervolume at
.72 of its gradient evaluations, and with rungs at the same shares of the dearest trial's cost mostly never. A caller
who wants an absolute resource after all passes it as ``round``, and its largest value as ``total`` for every trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ofmu.config.base import PositiveInt, Section
from ofmu.errors import ConfigError, DataError
from tune.space.objectives import Direction

Verdict = Literal["continue", "stop"]
TrialId = str | int
Costs = npt.NDArray[np.float64]
FORMAT = "ofmu-rungs/1"
_SLACK = 1e-9
"""Rounding errors that keep no round from its rung: 3 of 10 rounds reach 0.3."""


class RungSettings(Section):
    """When trials are compared on their way, and how many of them go on."""

    enabled: bool = False
    reduction_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0
    """One in this many goes on past a rung; each rung stands this many times further on than the one before."""
    first_rung: Annotated[float, Field(gt=0, lt=1)] = 0.125
    """Fraction of a trial's own rounds at which the first rung stands."""
    grace_rounds: PositiveInt = 2
    """No trial is stopped in an earlier round than this."""
    rung_size: PositiveInt = 4
    """Trials that a rung must have seen before it stops one; 1 is plain ASHA."""
    rows: PositiveInt = 16
    """Rows of each evaluation set that a trial is scored on at a rung, the same ones for all trials."""

    @property
    def levels(self) -> tuple[float, ...]:
        """Return the rungs' fractions, ascending, all below 1."""
        count = math.ceil(math.log(1 / self.first_rung, self.reduction_factor) - _SLACK)
        return tuple(self.first_rung * self.reduction_factor**step for step in range(count))

    def judged_rounds(self, total: int) -> tuple[int, ...]:
        """Return after which of its ``total`` rounds a trial is judged: only there need objectives be computed."""
        reached = {max(1, math.ceil(level * total - _SLACK)) for level in self.levels}
        return tuple(sorted(reached - {total}))


@dataclass(frozen=True, slots=True)
class Report:
    """A trial's objectives after one of its rounds."""

    trial: TrialId
    round: int
    total: int
    """Rounds that the trial is to run."""
    values: Mapping[str, float | None]


class RungScheduler:
    """Answers each report of a trial with ``continue`` or ``stop``.

    A trial is judged once at each rung, by the first report that reaches it; a report that reaches several at once
    counts at the highest. Of m earlier trials at the rung, let b stand before the newcomer; it stops if
    b > (m − 1) / reduction_factor and some other dominates it. Those of better fronts stand before it, and of its own
    front those that a farthest-first ε-net takes earlier. Equal trials stand side by side. With one objective this
    is the rule of Ray's ASHAScheduler for every newcomer that Ray decides by its place in the order; between the two
    neighbours of the quantile, Ray interpolates values and this stops.

    All that is used of an objective is the order of its values in the rung: a monotone rescaling changes nothing. A
    report in which an objective is missing, NaN or infinite counts as dominated by every complete one, and is not
    itself compared with: it is stopped at the first rung that has seen enough complete ones.

    The decisions are a function of the reports and their order: given those of an earlier session as ``reports``, it
    decides again and goes on alike. :meth:`state` and :meth:`restored` do the same without deciding again.

    Raises:
        ConfigError: no objective, or a direction that is neither ``min`` nor ``max``.
    """

    def __init__(
        self,
        directions: Mapping[str, Direction],
        settings: RungSettings | None = None,
        reports: Iterable[Report] = (),
    ) -> None:
        for name, direction in directions.items():
            if direction not in ("min", "max"):
                raise ConfigError(f"The direction of the objective '{name}' is '{direction}': give 'min' or 'max'")
        if not directions:
            raise ConfigError("Early stopping needs an objective: name one in search.objectives")
        self._directions = dict(directions)
        self._settings = RungSettings() if settings is None else settings
        self._rungs = [_Rung(level, len(directions)) for level in self._settings.levels]
        self._reached: dict[TrialId, int] = {}
        self._stopped: set[TrialId] = set()
        self._kept: list[Report] = []
        for report in reports:
            self.report(report.trial, report.round, report.values, report.total)

    @property
    def levels(self) -> tuple[float, ...]:
        """Return the fractions of a trial's own rounds at which it is judged, ascending."""
        return self._settings.levels

    def report(self, trial_id: TrialId, round: int, values: Mapping[str, float | None], total: int) -> Verdict:
        """Return whether the trial goes on after ``round`` (from 1) of its ``total`` rounds.

        A stopped trial stays stopped; a round told again, after a restart from a checkpoint, changes nothing, and the
        last round is never judged.

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
        self._keep(Report(trial_id, round, total, {name: values.get(name) for name in self._directions}), index)
        if self._goes_on(self._rungs[index], self._costs(values)) or round < self._settings.grace_rounds:
            return "continue"
        self._stopped.add(trial_id)
        return "stop"

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restored` needs, as JSON values: settings, the reports compared, who was stopped."""
        reports = [[r.trial, r.round, r.total, [_finite(value) for value in r.values.values()]] for r in self._kept]
        return {
            "format": FORMAT,
            "objectives": dict(self._directions),
            "settings": self._settings.model_dump(mode="json"),
            "reports": reports,
            "stopped": [trial for trial in self._reached if trial in self._stopped],
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> RungScheduler:
        """Return a scheduler that goes on exactly as the one whose ``state`` it was; no decision is taken again.

        Raises:
            DataError: ``state`` is none of :meth:`state`'s.
        """
        try:
            if state["format"] != FORMAT:
                raise ValueError(f"format {state['format']}")
            scheduler = cls(state["objectives"], RungSettings.model_validate(state["settings"]))
            for trial, round, total, values in state["reports"]:
                named = dict(zip(state["objectives"], values, strict=True))
                scheduler._keep(Report(trial, round, total, named), scheduler._rung_at(round, total))
            scheduler._fill_rungs()
            scheduler._stopped.update(state["stopped"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"The state of early stopping is malformed ({error}): delete it to start anew") from error
        return scheduler

    def _keep(self, report: Report, rung: int) -> None:
        self._reached[report.trial] = rung
        self._kept.append(report)

    def _fill_rungs(self) -> None:
        """Take the kept reports into their rungs, in the order that is cheapest."""
        found: list[list[Costs]] = [[] for _ in self._rungs]
        for report in self._kept:
            costs = self._costs(report.values)
            if costs is not None:
                found[self._rung_at(report.round, report.total)].append(costs)
        for rung, rows in zip(self._rungs, found, strict=True):
            rung.fill(np.array(rows).reshape(-1, len(self._directions)))

    def _goes_on(self, rung: _Rung, costs: Costs | None) -> bool:
        """Return what the rung says of a newcomer with these costs, and take it in."""
        full = rung.size >= self._settings.rung_size
        if costs is None:
            return not full
        goes_on = not full or rung.keeps(costs, self._settings.reduction_factor)
        rung.add(costs)
        return goes_on

    def _rung_at(self, round: int, total: int) -> int:
        """Return the index of the highest rung that the round reaches, −1 for none."""
        return sum(round >= rung.level * total - _SLACK for rung in self._rungs) - 1

    def _costs(self, values: Mapping[str, float | None]) -> Costs | None:
        """Return one cost per objective, to be minimised; None where one is unusable."""
        found = [values.get(name) for name in self._directions]
        if any(_finite(value) is None for value in found):
            return None
        signs = [1.0 if direction == "min" else -1.0 for direction in self._directions.values()]
        return np.array(found, dtype=np.float64) * signs


class _Rung:
    """The costs seen at one rung, each with the number of its front (0: nothing dominates it)."""

    def __init__(self, level: float, objectives: int) -> None:
        self.level = level
        self._costs: Costs = np.empty((0, objectives))
        self._front: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def size(self) -> int:
        return len(self._costs)

    def keeps(self, costs: Costs, reduction_factor: float) -> bool:
        """Return whether a newcomer with these costs goes on."""
        front = self._front_of(costs)
        if front == 0:
            return True
        allowed = math.floor((self.size - 1) / reduction_factor)
        ahead = int((self._front < front).sum())
        if ahead > allowed:
            return False
        peers = (self._front == front) & ~_dominates(costs, self._costs)
        return ahead + self._taken_before(costs, peers) <= allowed

    def add(self, costs: Costs) -> None:
        """Take the newcomer in, and move whatever it pushes down by one front each.

        A newcomer lengthens the longest chain of dominators above another by one at most.
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

    def fill(self, costs: Costs) -> None:
        """Take in many at once, by rows; the fronts come out as if they had come one by one."""
        for row in costs[np.lexsort(costs.T)]:
            self.add(row)

    def _front_of(self, costs: Costs) -> int:
        above = self._front[_dominates(self._costs, costs)]
        return int(above.max()) + 1 if len(above) else 0

    def _taken_before(self, costs: Costs, peers: npt.NDArray[np.bool_]) -> int:
        """Return how many of its front's other members an ε-net takes before the newcomer.

        The net starts from the most balanced member, whose worst rank is the least, and goes on with whatever lies
        farthest from all it has taken. Ranks are doubled mid-ranks among all of the rung, whole numbers, so that ties
        are exact; members that tie are taken together, so that the order in which they came does not matter.
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
    """Return, along the last axis, where ``one`` is at most ``other`` everywhere and below it somewhere."""
    at_most, below = one[..., 0] <= other[..., 0], one[..., 0] < other[..., 0]
    for index in range(1, one.shape[-1]):
        at_most = at_most & (one[..., index] <= other[..., index])
        below = below | (one[..., index] < other[..., index])
    found: npt.NDArray[np.bool_] = at_most & below
    return found


def _doubled_ranks(costs: Costs, members: Costs) -> npt.NDArray[np.int64]:
    """Return twice each of the members' mid-ranks among ``costs``, column by column."""
    columns = []
    for column, wanted in zip(np.sort(costs, axis=0).T, members.T, strict=True):
        columns.append(np.searchsorted(column, wanted, "left") + np.searchsorted(column, wanted, "right") + 1)
    return np.stack(columns, axis=1)


def _finite(value: Any) -> float | None:
    usable = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None
