"""The front of the rounds that trials stand for, and the rules that keep, select and stop by it. No Ray, no Optuna.

A trial stands for one of its rounds, so the sampler learns one vector of objectives per trial: that of the round that
adds the most hypervolume to the front of the trials that ended before. On recorded curves of the quickstart this loses
little against a front of all rounds: see ``tests/bench/bench_round_selection.py``.

There are two fronts. During a run, rounds are scored on a few rows without generation, and such scores are compared
only with each other. At the end of a run, the candidates are scored on all rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tune.pareto import Points, as_costs, front_mask, hypervolume, reference_point
from tune.space.objectives import Direction, value_range

_DECIMALS = 12
"""Gains of hypervolume are rounded to this, so that rounding errors add nothing to a front and part no equal gains."""


@dataclass(frozen=True)
class Scored:
    """The scores of one round."""

    values: Mapping[str, float | None]
    """The objectives. None: missing, or not finite."""
    violation: float = 0.0
    """The sum of its violations of the constraints. 0: the round keeps all of them."""


@dataclass(frozen=True)
class Verdict:
    """What a trial does after a round."""

    keep: bool = False
    """Its weights are kept, in place of those that the trial kept before."""
    stop: bool = False


@dataclass
class _Front:
    """The front of the rounds that ended trials stand for, and the worst value of each objective that was seen."""

    objectives: Mapping[str, Direction]
    costs: Points = field(init=False)
    seen: Points = field(init=False)
    """The best and the worst cost of each objective, shape (2, objectives) once there is one."""

    def __post_init__(self) -> None:
        self.costs = self.seen = np.empty((0, len(self.objectives)))

    def see(self, costs: Points) -> None:
        """Note values that widen the range of an objective without bounds."""
        both = np.vstack((self.seen, costs))
        self.seen = np.vstack((both.min(axis=0), both.max(axis=0)))

    def gain(self, costs: Points) -> float:
        """Return the hypervolume that a point adds."""
        reference = reference_point(list(self.objectives), self.seen, list(self.objectives.values()))
        more = hypervolume(np.vstack((self.costs, costs)), reference) - hypervolume(self.costs, reference)
        return max(0.0, round(more, _DECIMALS))

    def add(self, costs: Points) -> None:
        """Add a point."""
        both = np.vstack((self.costs, costs))
        self.costs = both[front_mask(both)]

    def covers(self, costs: Points, margin: float) -> bool:
        """Return whether a point would add nothing if each objective were better by a share of its range."""
        ranges = [value_range(name) for name in self.objectives]
        seen = self.seen[1] - self.seen[0] if len(self.seen) else np.zeros(len(ranges))
        width = np.array([seen[i] if known is None else known for i, known in enumerate(ranges)])
        return bool((self.costs <= costs - margin * width).all(axis=1).any())


class RoundArchive:
    """Decides for the trials of one search. The decisions depend only on the calls and their order.

    Args:
        objectives: the objectives with their directions.
        stop_margin: see :class:`tune.checkpoint_selection.config.CheckpointSelectionConfig`.
    """

    def __init__(self, objectives: Mapping[str, Direction], stop_margin: float | None) -> None:
        self._objectives, self._margin = dict(objectives), stop_margin
        self._cheap, self._whole = _Front(self._objectives), _Front(self._objectives)
        self._reported: dict[int, dict[int, Scored]] = {}
        self._kept: dict[int, int] = {}

    def report(self, trial: int, round: int, total: int, scored: Scored) -> Verdict:
        """Return whether a trial keeps the weights of a round, and whether it ends there.

        A round is kept if it keeps the constraints and adds to the front more than the round that the trial keeps. A
        trial ends if its rounds can add nothing any more, by ``stop_margin``; or if it violates the constraints at two
        scored rounds in a row and comes no nearer to them. After its last round a trial neither keeps nor ends.
        """
        earlier = self._reported.setdefault(trial, {})
        previous = earlier[max(earlier)] if earlier else None
        earlier[round] = scored
        costs = self._costs(scored)
        if costs is None:
            return Verdict()
        self._cheap.see(costs)
        if round >= total:
            return Verdict()
        if scored.violation > 0:
            broken = previous is not None and 0 < previous.violation <= scored.violation
            return Verdict(stop=broken or self._is_hopeless(trial, costs))
        kept = self._costs(earlier[self._kept[trial]]) if trial in self._kept else None
        keep = self._cheap.gain(costs) > (0.0 if kept is None else self._cheap.gain(kept))
        if keep:
            self._kept[trial] = round
        return Verdict(keep=keep, stop=not keep and self._is_hopeless(trial, costs))

    def select(self, trial: int, candidates: Mapping[int, Scored]) -> int:
        """Return the round for which a trial stands, and add it to the fronts.

        It is the candidate that violates the constraints least, then the one that adds the most hypervolume, then the
        latest. Without complete candidates it is the latest round.

        Args:
            trial: the trial's number.
            candidates: the scores on all rows, by round.
        """
        complete = {round: costs for round, each in candidates.items() if (costs := self._costs(each)) is not None}
        if not complete:
            return max(candidates)
        for costs in complete.values():
            self._whole.see(costs)
        order = sorted(complete, reverse=True)
        chosen = min(order, key=lambda round: (candidates[round].violation, -self._whole.gain(complete[round])))
        if candidates[chosen].violation <= 0:
            self._whole.add(complete[chosen])
            reported = self._reported.get(trial, {}).get(chosen)
            cheap = None if reported is None else self._costs(reported)
            if cheap is not None:
                self._cheap.add(cheap)
        return chosen

    def _is_hopeless(self, trial: int, costs: Points) -> bool:
        """Return whether no round of the trial adds to the front, nor would the present one if it were much better."""
        if self._margin is None or not self._cheap.covers(costs, self._margin):
            return False
        rounds = (self._costs(each) for each in self._reported[trial].values() if each.violation <= 0)
        return not any(each is not None and self._cheap.gain(each) > 0 for each in rounds)

    def _costs(self, scored: Scored) -> Points | None:
        """Return the objectives to be minimised, shape (1, objectives); None if one is missing."""
        found = [scored.values.get(name) for name in self._objectives]
        values = [value for value in found if value is not None and np.isfinite(value)]
        return as_costs([values], list(self._objectives.values())) if len(values) == len(found) else None
