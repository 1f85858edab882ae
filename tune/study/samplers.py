"""Draws from the space through an Optuna trial, and the samplers that steer them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from tune.space.space import in_order, is_active, is_whole
from tune.study.history_limit import BoundedHistorySampler

if TYPE_CHECKING:
    from tune.config import Parameter, SearchConfig


def draw(trial: optuna.trial.BaseTrial, config: SearchConfig) -> dict[str, Any]:
    """Return the settings that ``trial`` suggests, inactive conditional parameters left out."""
    space = config.search.space
    drawn: dict[str, Any] = {}
    for key in in_order(space):
        parameter = space[key]
        if is_active(parameter, drawn):
            drawn[key] = parameter.value if parameter.kind == "fixed" else _suggest(trial, config, key, parameter)
    return drawn


def _suggest(trial: optuna.trial.BaseTrial, config: SearchConfig, key: str, parameter: Parameter) -> Any:
    if parameter.choices is not None:
        return trial.suggest_categorical(key, parameter.choices)
    low, high = parameter.low or 0.0, parameter.high or 0.0
    if is_whole(config, key, parameter):
        step = int(parameter.step or 1)
        return trial.suggest_int(key, int(low), int(high), step=step, log=parameter.log)
    return trial.suggest_float(key, low, high, step=parameter.step, log=parameter.log)


def make_sampler(name: str, seed: int, number: int, num_trials: int) -> optuna.samplers.BaseSampler:
    """Return the sampler for the trial ``number``.

    One is made per trial, its seed drawn from the search's seed and that number: a resumed search then goes on
    exactly as an undisturbed one with the same finished trials would. All four keep their memory in the study;
    of a long one, TPE and GP read a part of fixed size.
    """
    derived = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    # Optuna's own defaults (10 random trials; a population of 50) would use up a short search.
    startup = max(4, min(10, num_trials // 4))
    makers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: BoundedHistorySampler(optuna.samplers.TPESampler(seed=derived, n_startup_trials=startup)),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=derived, population_size=max(6, min(50, num_trials // 4))),
        "gp": lambda: BoundedHistorySampler(
            optuna.samplers.GPSampler(seed=derived, n_startup_trials=startup, warn_independent_sampling=False)
        ),
        "random": lambda: optuna.samplers.RandomSampler(seed=derived),
    }
    return makers[name]()
