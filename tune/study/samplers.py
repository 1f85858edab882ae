"""The samplers of a search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import optuna

from tune.study.history_limit import BoundedHistorySampler


def make_sampler(name: str, seed: int, number: int, num_trials: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial.

    Every trial has its own sampler, seeded by the search's seed and the trial's number. So a resumed search continues
    exactly as an uninterrupted search with the same finished trials. All four samplers keep their state in the study,
    and all but ``random`` prefer trials that keep the constraints.
    In a long search, TPE and GP read only a part of the history.

    Args:
        name: ``tpe``, ``nsga2``, ``gp`` or ``random``.
        seed: the search's seed.
        number: the trial's number.
        num_trials: number of trials of the search.
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
