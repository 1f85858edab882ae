"""Simulated searches over known learning curves: a clock of its own, workers, a searcher, and early stopping.

Nothing is trained and nobody waits: a trial's rounds end when the clock says so, and the searcher and the scheduler
hear of them in the order in which a real search would tell them. The clock counts gradient evaluations, of which
each worker does one per unit of time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import optuna
from optuna.trial import TrialState

from simulation.curves import Curve
from tune.checkpoint_selection.archive import RoundArchive, Scored, Verdict
from tune.checkpoint_selection.config import CheckpointSelectionConfig
from tune.early_stopping.rungs import RungScheduler
from tune.pareto import Points, as_costs, front_mask, hypervolume
from tune.space.objectives import Direction

State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True)
class SimulatedTrial:
    """How one trial ended."""

    number: int
    state: State
    """``failed``: the trial ran to its end, and an objective is missing there."""
    rounds: int
    """Rounds it ran."""
    cost: float
    """Gradient evaluations it spent."""
    ended: float
    """The clock at its end."""
    spent: float
    """Gradient evaluations that all trials together had spent by then."""
    values: tuple[float, ...]
    """The objectives at its end, or at the round that was selected."""


@dataclass(frozen=True)
class Selection:
    """Checkpoint selection of a simulated search. A round's scores on few rows are those of its curve."""

    archive: RoundArchive
    config: CheckpointSelectionConfig = field(default_factory=CheckpointSelectionConfig)


@dataclass(frozen=True)
class Simulation:
    """A simulated search that is over, its trials in the order in which they ended."""

    directions: Mapping[str, Direction]
    trials: Sequence[SimulatedTrial]

    @property
    def gradient_evaluations(self) -> float:
        """Return what all trials together spent."""
        return sum(trial.cost for trial in self.trials)

    @property
    def complete(self) -> list[SimulatedTrial]:
        """Return the trials that enter the front: neither stopped nor failed."""
        return [trial for trial in self.trials if trial.state == "complete"]

    def hypervolumes(self, reference: Points) -> tuple[Points, Points]:
        """Return what had been spent at the end of each complete trial, and the front's hypervolume then.

        ``reference`` is in costs, as in :func:`tune.pareto.hypervolume`.
        """
        costs = as_costs([trial.values for trial in self.complete], list(self.directions.values()))
        front, volumes = costs[:0], []
        for row in costs:
            if not (front <= row).all(axis=1).any():
                front = np.vstack((front, row))
                front = front[front_mask(front)]
            volumes.append(hypervolume(front, reference))
        return np.array([trial.spent for trial in self.complete]), np.array(volumes)

    def spent_until(self, volume: float, reference: Points) -> float:
        """Return the gradient evaluations spent when the hypervolume first was ``volume``; infinity for never."""
        spent, volumes = self.hypervolumes(reference)
        reached = np.flatnonzero(volumes >= volume - 1e-12)
        return float(spent[reached[0]]) if len(reached) else float("inf")


class CurveSearcher(Protocol):
    """Whoever chooses the next trial."""

    def ask(self) -> Curve | None:
        """Return the curve of the next trial, numbered from 0; None when there is none left."""

    def tell(self, number: int, state: State, values: tuple[float, ...]) -> None:
        """Hear how a trial that was asked for has ended."""


class TableSearcher:
    """Draws a table's curves without replacement: random search over what has been run already."""

    def __init__(self, curves: Sequence[Curve], seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(curves))
        self._left = [curves[index] for index in order[::-1]]

    def ask(self) -> Curve | None:
        """Return the next curve of the drawn order."""
        return self._left.pop() if self._left else None

    def tell(self, number: int, state: State, values: tuple[float, ...]) -> None:
        """Learn nothing."""


class OptunaSearcher:
    """Asks an Optuna study; ``curve_of`` draws a trial's settings and returns its curve.

    ``sampler`` makes the sampler of a trial from its number, as a search on Ray does; None keeps the study's own.
    """

    def __init__(
        self,
        study: optuna.Study,
        curve_of: Callable[[optuna.Trial], Curve],
        sampler: Callable[[int], optuna.samplers.BaseSampler] | None = None,
    ) -> None:
        self._study, self._curve_of, self._sampler = study, curve_of, sampler
        self._live: dict[int, optuna.Trial] = {}

    def ask(self) -> Curve | None:
        """Return the curve of the settings that the study suggests."""
        if self._sampler is not None:
            self._study.sampler = self._sampler(len(self._study.get_trials(deepcopy=False)))
        trial = self._study.ask()
        self._live[trial.number] = trial
        return self._curve_of(trial)

    def tell(self, number: int, state: State, values: tuple[float, ...]) -> None:
        """Tell the study; only a complete trial's values are told."""
        trial = self._live.pop(number)
        if state == "complete":
            self._study.tell(trial, list(values))
        else:
            self._study.tell(trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)


def simulate(
    searcher: CurveSearcher,
    directions: Mapping[str, Direction],
    *,
    trials: int,
    workers: int = 1,
    scheduler: RungScheduler | None = None,
    selection: Selection | None = None,
    budget: float = float("inf"),
) -> Simulation:
    """Run a search until ``trials`` have ended, none is left, or ``budget`` gradient evaluations are spent.

    Trials that still run when the budget is spent are dropped. Rounds that end at the same time are told in the
    order of their trials' numbers. ``scheduler`` None lets every trial run to its end. With ``selection``, a trial has
    the values of the round that its archive selects, and ends early if the archive stops it.
    """
    search = _Search(searcher, list(directions), scheduler, selection)
    for _ in range(workers):
        search.start(trials)
    while search.queue and search.spent < budget:
        if search.next_round():
            search.start(trials)
    return Simulation(dict(directions), search.ended)


class _Search:
    def __init__(
        self,
        searcher: CurveSearcher,
        names: Sequence[str],
        scheduler: RungScheduler | None,
        selection: Selection | None,
    ) -> None:
        self._searcher, self._names, self._scheduler = searcher, names, scheduler
        self._selection = selection
        self._kept: dict[int, int] = {}
        self._curves: list[Curve] = []
        self._clock = 0.0
        self.queue: list[tuple[float, int, int]] = []
        """(time at which a round ends, the trial's number, the round)"""
        self.ended: list[SimulatedTrial] = []
        self.spent = 0.0

    def start(self, trials: int) -> None:
        """Give an idle worker its next trial, if there is to be one."""
        curve = self._searcher.ask() if len(self._curves) < trials else None
        if curve is not None:
            self._curves.append(curve)
            self._queue_round(len(self._curves) - 1, 1)

    def next_round(self) -> bool:
        """Let the next round end, and return whether its trial ended with it."""
        self._clock, number, round = heapq.heappop(self.queue)
        self.spent += self._cost_of(number, round)
        curve = self._curves[number]
        values = tuple(float(value) for value in curve.values[round - 1])
        if self._selection is not None:
            return self._select(number, round, curve, self._selection)
        if round == curve.rounds:
            self._end(number, round, "complete" if np.isfinite(values).all() else "failed", values)
        elif self._scheduler is not None and self._stops(number, round, values, curve.rounds, self._scheduler):
            self._end(number, round, "pruned", values)
        else:
            self._queue_round(number, round + 1)
            return False
        return True

    def _select(self, number: int, round: int, curve: Curve, selection: Selection) -> bool:
        """Let a round end in a search with selection, and return whether its trial ended with it."""
        is_last, kept = round == curve.rounds, self._kept.get(number)
        verdict = Verdict()
        if is_last or round in selection.config.scored_rounds(curve.rounds):
            verdict = selection.archive.report(number, round, curve.rounds, self._scored(curve, round))
        if verdict.keep:
            self._kept[number] = round
        if not is_last and not verdict.stop:
            self._queue_round(number, round + 1)
            return False
        candidates = {*([kept] if kept is not None else []), *([round] if is_last else [])}
        if not candidates:
            self._end(number, round, "pruned", tuple(map(float, curve.values[round - 1])))
            return True
        chosen = selection.archive.select(number, {each: self._scored(curve, each) for each in candidates})
        values = tuple(map(float, curve.values[chosen - 1]))
        self._end(number, round, "complete" if np.isfinite(values).all() else "failed", values)
        return True

    def _scored(self, curve: Curve, round: int) -> Scored:
        return Scored(dict(zip(self._names, map(float, curve.values[round - 1]), strict=True)))

    def _stops(self, number: int, round: int, values: tuple[float, ...], total: int, scheduler: RungScheduler) -> bool:
        named = dict(zip(self._names, values, strict=True))
        return scheduler.report(number, round, named, total) == "stop"

    def _end(self, number: int, round: int, state: State, values: tuple[float, ...]) -> None:
        cost = float(self._curves[number].costs[round - 1])
        trial = SimulatedTrial(
            number=number, state=state, rounds=round, cost=cost, ended=self._clock, spent=self.spent, values=values
        )
        self.ended.append(trial)
        self._searcher.tell(number, state, values)

    def _cost_of(self, number: int, round: int) -> float:
        costs = self._curves[number].costs
        return float(costs[round - 1] - (costs[round - 2] if round > 1 else 0.0))

    def _queue_round(self, number: int, round: int) -> None:
        heapq.heappush(self.queue, (self._clock + self._cost_of(number, round), number, round))
