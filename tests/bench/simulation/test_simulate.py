from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from simulation.curves import SYNTHETIC_OBJECTIVES, SYNTHETIC_SETTINGS, Curve, synthetic_curve
from simulation.simulate import OptunaSearcher, Selection, TableSearcher, simulate
from tune.checkpoint_selection.archive import RoundArchive
from tune.early_stopping.config import EarlyStoppingConfig
from tune.early_stopping.rungs import RungScheduler
from tune.pareto import as_costs, hypervolume

CORNER = np.array([1.0, 0.0])


def curve(values, cost=1.0):
    rows = np.array(values, dtype=float)
    return Curve(cost * np.arange(1, len(rows) + 1), rows)


def synthetic_table(count, seed=0):
    random = np.random.default_rng(seed)
    return [synthetic_curve(random.random(len(SYNTHETIC_SETTINGS)), seed * count + i) for i in range(count)]


class InOrder:
    """Hands curves out in order and writes down what it is told."""

    def __init__(self, curves):
        self.left, self.told = list(curves), []

    def ask(self):
        return self.left.pop(0) if self.left else None

    def tell(self, number, state, values):
        self.told.append((number, state, values))


def test_the_clock_of_two_workers_by_hand():
    """Costs 3, 1 and 5 a round: the second trial's worker takes the third at 2, the first ends at 6."""
    flat = [[0.5, 0.5]] * 2
    searcher = InOrder([curve(flat, 3), curve(flat, 1), curve(flat, 5)])
    found = simulate(searcher, SYNTHETIC_OBJECTIVES, trials=3, workers=2)
    assert [(t.number, t.ended, t.spent, t.cost) for t in found.trials] == [(1, 2, 2, 2), (0, 6, 8, 6), (2, 12, 18, 10)]
    assert found.gradient_evaluations == 18
    assert searcher.told == [(t.number, t.state, t.values) for t in found.trials]


def test_selection_of_rounds_by_hand():
    """The first trial stands for its second round. The second is far behind it after one round, and ends there."""
    first = curve([[0.5, 0.5], [0.4, 0.9], [0.9, 0.9], [0.6, 0.6]])
    second = curve([[0.9, 0.1], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    third = curve([[0.5, 0.85], [0.5, 0.8], [0.5, 0.8], [0.3, 0.8]])
    searcher = InOrder([first, second, third])
    selection = Selection(RoundArchive(SYNTHETIC_OBJECTIVES, 0.2))
    found = simulate(searcher, SYNTHETIC_OBJECTIVES, trials=3, selection=selection)
    assert searcher.told == [(0, "complete", (0.4, 0.9)), (1, "pruned", (0.9, 0.1)), (2, "complete", (0.3, 0.8))]
    assert [trial.cost for trial in found.trials] == [4, 1, 4]


@pytest.mark.parametrize("workers", [1, 3, 64])
def test_without_a_scheduler_every_trial_is_told_once_and_complete(workers):
    table = synthetic_table(30)
    searcher = InOrder(table)
    found = simulate(searcher, SYNTHETIC_OBJECTIVES, trials=30, workers=workers)
    assert sorted(number for number, _, _ in searcher.told) == list(range(30))
    assert {trial.state for trial in found.trials} == {"complete"}
    assert found.gradient_evaluations == sum(c.costs[-1] for c in table)
    assert max(t.ended for t in found.trials) >= found.gradient_evaluations / workers
    for trial in found.trials:
        assert trial.values == tuple(table[trial.number].values[-1])


def test_stopped_and_failed_trials_are_told_as_such_and_enter_no_front():
    good = [curve([[0.2 + i / 50, 0.8 + i / 50]] * 4) for i in range(4)]
    bad, broken = curve([[0.1, 0.1], [0.9, 0.1], [0, 1], [0, 1]]), curve([[0.0, 0.9]] * 3 + [[math.nan, 0.9]])
    searcher = InOrder([*good, bad, broken])
    settings = EarlyStoppingConfig(first_rung=0.5, grace_rounds=1, rung_size=4)
    scheduler = RungScheduler(SYNTHETIC_OBJECTIVES, settings)
    found = simulate(searcher, SYNTHETIC_OBJECTIVES, trials=9, scheduler=scheduler)
    assert [(n, state) for n, state, _ in searcher.told] == [
        *((i, "complete") for i in range(4)),
        (4, "pruned"),
        (5, "failed"),
    ]
    assert found.trials[4].rounds == 2
    assert found.gradient_evaluations == 4 * 4 + 2 + 4
    spent, volumes = found.hypervolumes(CORNER)
    assert spent.tolist() == [4, 8, 12, 16]
    assert len(volumes) == 4


def test_the_hypervolume_grows_as_if_computed_from_scratch():
    found = simulate(TableSearcher(synthetic_table(40), 1), SYNTHETIC_OBJECTIVES, trials=40, workers=4)
    spent, volumes = found.hypervolumes(CORNER)
    costs = as_costs([trial.values for trial in found.trials], ["min", "max"])
    assert volumes.tolist() == [hypervolume(costs[: n + 1], CORNER) for n in range(40)]
    first = int(np.argmax(volumes >= volumes[-1] / 2))
    assert found.spent_until(volumes[-1] / 2, CORNER) == spent[first]
    assert found.spent_until(2.0, CORNER) == math.inf


def test_a_budget_ends_the_search_once_spent():
    found = simulate(TableSearcher(synthetic_table(200), 0), SYNTHETIC_OBJECTIVES, trials=200, workers=4, budget=5000)
    assert 0 < len(found.trials) < 200
    assert all(trial.spent <= 5000 + 100 for trial in found.trials)


@pytest.mark.slow
@given(st.integers(0, 2**31), st.integers(1, 8))
def test_a_simulation_repeats_itself(seed, workers):
    def once():
        scheduler = RungScheduler(SYNTHETIC_OBJECTIVES, EarlyStoppingConfig())
        return simulate(
            TableSearcher(TABLE, seed), SYNTHETIC_OBJECTIVES, trials=20, workers=workers, scheduler=scheduler
        )

    assert once() == once()


TABLE = synthetic_table(20)


def test_one_worker_decides_as_the_scheduler_does_alone():
    settings = EarlyStoppingConfig(rung_size=2)
    found = simulate(
        InOrder(TABLE), SYNTHETIC_OBJECTIVES, trials=20, scheduler=RungScheduler(SYNTHETIC_OBJECTIVES, settings)
    )
    scheduler = RungScheduler(SYNTHETIC_OBJECTIVES, settings)
    for trial, one in zip(found.trials, TABLE, strict=True):
        for round, values in enumerate(one.values, start=1):
            named = dict(zip(SYNTHETIC_OBJECTIVES, values, strict=True))
            if scheduler.report(trial.number, round, named, one.rounds) == "stop":
                break
        assert (trial.rounds, trial.state) == (round, "pruned" if round < one.rounds else "complete")
    assert {trial.state for trial in found.trials} == {"pruned", "complete"}


@pytest.mark.slow
def test_an_optuna_study_hears_how_every_trial_ended():
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=optuna.samplers.RandomSampler(seed=0))

    def curve_of(trial):
        return synthetic_curve([trial.suggest_float(name, 0, 1) for name in SYNTHETIC_SETTINGS], trial.number)

    numbers = []

    def sampler(number):
        numbers.append(number)
        return optuna.samplers.TPESampler(seed=number, n_startup_trials=8)

    searcher = OptunaSearcher(study, curve_of, sampler)
    scheduler = RungScheduler(SYNTHETIC_OBJECTIVES, EarlyStoppingConfig())
    found = simulate(searcher, SYNTHETIC_OBJECTIVES, trials=40, workers=4, scheduler=scheduler)
    assert numbers == list(range(40))
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    for trial in found.trials:
        frozen = study.trials[trial.number]
        assert frozen.state == states[trial.state]
        assert frozen.values == (list(trial.values) if trial.state == "complete" else None)
    front = {trial.number for trial in study.best_trials}
    assert front <= {trial.number for trial in found.complete}


@pytest.mark.slow
def test_thousands_of_trials_with_early_stopping_cost_half():
    table = synthetic_table(2000)
    scheduler = RungScheduler(SYNTHETIC_OBJECTIVES, EarlyStoppingConfig())
    stopped = simulate(TableSearcher(table, 0), SYNTHETIC_OBJECTIVES, trials=2000, workers=16, scheduler=scheduler)
    assert len(stopped.trials) == 2000
    assert stopped.gradient_evaluations < 0.5 * sum(c.costs[-1] for c in table)
