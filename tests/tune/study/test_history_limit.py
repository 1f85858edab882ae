from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from tune.pareto import front_mask
from tune.study import history_limit
from tune.study.history_limit import BoundedHistorySampler, select_best, select_history


def history(count: int, seed: int, objectives: int = 2) -> Any:
    random = np.random.default_rng(seed)
    costs = random.integers(0, 40, (count, objectives)).astype(float)
    costs[random.random(count) < 0.2] = np.nan
    return costs


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 90), st.integers(8, 40), st.integers(0, 9), st.integers(2, 3))
def test_a_selection_has_the_allowed_number_of_distinct_trials(count, limit, seed, objectives):
    selected = select_history(history(count, seed, objectives), limit)
    assert selected == sorted(set(selected))
    assert len(selected) == min(count, limit)
    if count <= limit:
        assert selected == list(range(count))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(1, 40), st.integers(0, 9))
def test_the_best_trials_are_successive_fronts(count, wanted, seed):
    costs = history(count, seed)
    found = set(select_best(costs, wanted).tolist())
    scored = {int(index) for index in np.flatnonzero(~np.isnan(costs).any(axis=1))}
    assert len(found) == min(wanted, len(scored))
    left = scored
    while left:
        rows = sorted(left)
        front = {rows[index] for index in np.flatnonzero(front_mask(costs[rows]))}
        if not front <= found:
            assert found & left <= front, "a later front is selected only after all earlier ones"
            break
        left = left - front


def test_a_selection_holds_the_front_and_the_newest_trials():
    costs = np.column_stack((np.full(1000, 0.5), np.full(1000, 0.5)))
    costs[[3, 400, 700]] = [[0, 0.2], [0.1, 0.1], [0.2, 0]]
    selected = select_history(costs, 64)
    assert {3, 400, 700, *range(990, 1000)} <= set(selected)
    assert min(selected) < 10
    gaps = np.diff([index for index in selected if 10 < index < 900])
    assert gaps.max() < 100, "the others lie evenly over the history"


def draws(limit: int | None, count: int) -> list[dict[str, Any]]:
    study = optuna.create_study(directions=["minimize", "maximize"])
    for number in range(count):
        sampler: optuna.samplers.BaseSampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=5)
        study.sampler = sampler if limit is None else BoundedHistorySampler(sampler, limit)
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


@pytest.mark.slow
def test_up_to_the_limit_suggestions_are_bit_for_bit_those_of_the_sampler():
    plain = draws(None, 40)
    finished = sum(number % 7 != 5 for number in range(40))
    assert draws(finished, 40) == plain
    cut = draws(16, 40)
    # Up to the eighteenth trial, at most sixteen trials have finished; the nineteenth follows more of them.
    assert cut[:18] == plain[:18]
    assert cut != plain


@pytest.mark.slow
def test_an_updated_history_equals_one_that_is_read_again():
    def search(*, from_scratch: bool) -> list[dict[str, Any]]:
        study = optuna.create_study(directions=["minimize", "maximize"])
        live: list[optuna.Trial] = []
        drawn, chance = [], np.random.default_rng(4)
        for number in range(60):
            if from_scratch:
                history_limit._HISTORIES.clear()
            study.sampler = BoundedHistorySampler(optuna.samplers.TPESampler(seed=number, n_startup_trials=4), 12)
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

    assert search(from_scratch=False) == search(from_scratch=True)


def test_one_draw_looks_through_all_trials_a_fixed_number_of_times(monkeypatch):
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: (trial.suggest_float("a", 0, 1), trial.suggest_float("b", 0, 1)), n_trials=40)
    for _ in range(3):
        study.ask().suggest_float("a", 0, 1)  # trials that run, which TPE takes for poor ones
    reads: list[int] = []
    storage = study._storage
    get_all = storage.get_all_trials
    monkeypatch.setattr(storage, "get_all_trials", lambda *args, **kwargs: reads.append(1) or get_all(*args, **kwargs))

    def reads_of_a_draw(parameters: int) -> int:
        study.sampler = BoundedHistorySampler(optuna.samplers.TPESampler(seed=1), limit=20)
        reads.clear()
        trial = study.ask()
        for number in range(parameters):
            trial.suggest_float(f"x{number}", 0, 1)
        return len(reads)

    assert reads_of_a_draw(12) == reads_of_a_draw(2)
