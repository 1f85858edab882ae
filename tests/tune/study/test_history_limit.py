from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from tune.results.pareto import front_mask
from tune.study import history_limit as glimpse_module
from tune.study.history_limit import GlimpsingSampler, best, glimpse


def history(count: int, seed: int, objectives: int = 2) -> Any:
    random = np.random.default_rng(seed)
    costs = random.integers(0, 40, (count, objectives)).astype(float)
    costs[random.random(count) < 0.2] = np.nan
    return costs


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 90), st.integers(8, 40), st.integers(0, 9), st.integers(2, 3))
def test_a_glimpse_holds_as_many_as_it_may_each_once(count, bound, seed, objectives):
    shown = glimpse(history(count, seed, objectives), bound)
    assert shown == sorted(set(shown))
    assert len(shown) == min(count, bound)
    if count <= bound:
        assert shown == list(range(count))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(1, 40), st.integers(0, 9))
def test_the_best_are_fronts_one_after_the_other(count, wanted, seed):
    costs = history(count, seed)
    found = set(best(costs, wanted).tolist())
    scored = {int(index) for index in np.flatnonzero(~np.isnan(costs).any(axis=1))}
    assert len(found) == min(wanted, len(scored))
    left = scored
    while left:
        rows = sorted(left)
        front = {rows[index] for index in np.flatnonzero(front_mask(costs[rows]))}
        if not front <= found:
            assert found & left <= front, "none of a later front while one of an earlier front is missing"
            break
        left = left - front


def test_a_long_history_shows_its_front_and_its_newest():
    costs = np.column_stack((np.full(1000, 0.5), np.full(1000, 0.5)))
    costs[[3, 400, 700]] = [[0, 0.2], [0.1, 0.1], [0.2, 0]]
    shown = glimpse(costs, 64)
    assert {3, 400, 700, *range(990, 1000)} <= set(shown)
    assert min(shown) < 10
    gaps = np.diff([index for index in shown if 10 < index < 900])
    assert gaps.max() < 100, "the rest lies evenly over the history"


def draws(bound: int | None, count: int) -> list[dict[str, Any]]:
    study = optuna.create_study(directions=["minimize", "maximize"])
    for number in range(count):
        sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=5)
        study.sampler = sampler if bound is None else GlimpsingSampler(sampler, bound)
        trial = study.ask()
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_int("y", 1, 9)
        if number % 7 == 3:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif number % 7 != 5:
            study.tell(trial, [x * y, x - y])
    return [trial.params for trial in study.trials]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_up_to_the_bound_suggestions_are_bit_for_bit_the_samplers_own():
    plain = draws(None, 40)
    finished = sum(number % 7 != 5 for number in range(40))
    assert draws(finished, 40) == plain
    cut = draws(16, 40)
    # Sixteen finished trials are all shown, and the nineteenth trial is the first to follow more.
    assert cut[:18] == plain[:18]
    assert cut != plain


def test_a_history_that_is_read_on_is_the_one_that_is_read_anew():
    def search(*, anew: bool) -> list[dict[str, Any]]:
        study = optuna.create_study(directions=["minimize", "maximize"])
        live: list[optuna.Trial] = []
        drawn, chance = [], np.random.default_rng(4)
        for number in range(60):
            if anew:
                glimpse_module._HISTORIES.clear()
            study.sampler = GlimpsingSampler(optuna.samplers.TPESampler(seed=number, n_startup_trials=4), 12)
            live.append(study.ask())
            x, y = (live[-1].suggest_float(name, 0, 1) for name in "xy")
            drawn.append({"x": x, "y": y})
            while len(live) > 3:
                trial = live.pop(int(chance.integers(len(live))))
                end = chance.choice(["complete", "complete", "complete", "pruned", "fail"])
                if end == "complete":
                    study.tell(trial, [trial.params["x"], trial.params["y"]])
                else:
                    study.tell(trial, state=TrialState.PRUNED if end == "pruned" else TrialState.FAIL)
        return drawn

    assert search(anew=False) == search(anew=True)
