"""Warm start: give the results of earlier searches to a new search before the new search draws its first setting.

Trials of the same task become prior trials of the new study, if the new search could have drawn their settings. Prior
trials inform the sampler. They count neither as trials of ``search.num_trials`` nor for the front. If the earlier
search had another task (another model or other data), its scores have no meaning here, but its settings do: the
settings of its front run first, after the baselines.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import optuna
from optuna.trial import FrozenTrial, create_trial

from ofmu.config.base import Section
from ofmu.io.files import write_json
from ofmu.run_files import read_stored, stored_values
from tune.space.constraints import Limits, violations
from tune.space.draw import draw
from tune.space.objectives import objective_values
from tune.study.baselines import PRIOR
from tune.study.limits import read_limits
from tune.study.prior_search import InitialPoint, PriorSearch, PriorTrial
from tune.study.storage import flush

if TYPE_CHECKING:
    from tune.config import SearchConfig
    from tune.rundir.search_dir import RunDirectory


class WarmStart(Section):
    """What a search gets from earlier searches."""

    prior: tuple[PriorTrial, ...] = ()
    initial: tuple[InitialPoint, ...] = ()


def check_warm_start(config: SearchConfig) -> None:
    """Check the searches that ``search.warm_start`` names, as far as that is possible before the preparation.

    Raises:
        RunError: there is no such search, or none of its trials is complete.
        ConfigError: an earlier search had another method, or other objectives than the config names.
    """
    for place in config.search.warm_start:
        # Without named objectives, the preparation may replace one that the data do not give.
        PriorSearch(place, config, objectives_known=config.search.objectives is not None)


def read_warm_start(config: SearchConfig, keys: Mapping[str, str] | None = None) -> WarmStart:
    """Read the searches that ``search.warm_start`` names. Warn how many of their settings are left out.

    Args:
        config: the new search.
        keys: the cache keys of the new search's preparation. None: two tasks are the same if the configs are the same
            and the hashes of the rows, if both are known, are equal.

    Raises:
        RunError: there is no such search, or none of its trials is complete.
        ConfigError: an earlier search had another method or other objectives.
    """
    prior: dict[str, PriorTrial] = {}
    initial: dict[str, InitialPoint] = {}
    for place in config.search.warm_start:
        earlier = PriorSearch(place, config)
        if earlier.is_same_task(keys):
            trials = earlier.prior_trials()
            prior.update({trial.origin: trial for trial in trials})
            offered, used = len(earlier.complete_trials()), len(trials)
        else:
            points = earlier.initial_points()
            initial.update({json.dumps(point.settings): point for point in points})
            offered, used = len(earlier.front_trials()), len(points)
        if used < offered:
            warnings.warn(
                f"{offered - used} of {offered} trials of {place} lie outside the space of this search, and are left "
                "out",
                stacklevel=2,
            )
    return WarmStart(prior=tuple(prior.values()), initial=tuple(initial.values()))


def store_warm_start(run: RunDirectory, warm_start: WarmStart) -> None:
    """Write the warm start to the new search's directory. A resume then does not need the earlier searches.

    Raises:
        StorageError: the write fails.
    """
    write_json(run.warm_start_file, warm_start.model_dump(mode="json"))


def apply_warm_start(study: optuna.Study, config: SearchConfig, run: RunDirectory) -> None:
    """Add the stored warm start to the study. Trials that the study already holds are not added again."""
    stored = read_stored(run.warm_start_file)
    if stored is None:
        return
    with stored_values(run.warm_start_file):
        warm_start = WarmStart.model_validate(stored)
    limits = read_limits(study, config) or ()
    present = {trial.user_attrs.get("origin") for trial in study.get_trials(deepcopy=False)}
    for trial in warm_start.prior:
        if trial.origin not in present:
            study.add_trial(_as_frozen_trial(trial, config, limits))
    for point in warm_start.initial:
        if point.origin not in present:
            study.enqueue_trial(point.settings, user_attrs={"origin": point.origin})
    flush(study)


def _as_frozen_trial(trial: PriorTrial, config: SearchConfig, limits: Limits) -> FrozenTrial:
    fixed = optuna.trial.FixedTrial(trial.settings)
    draw(fixed, config.search.space, config.unlearn)
    values, _ = objective_values(trial.metrics, config.objectives)
    return create_trial(
        params=fixed.params,
        distributions=fixed.distributions,
        values=values,
        user_attrs={"role": PRIOR, "origin": trial.origin, "overrides": trial.overrides, "metrics": trial.metrics},
        constraints=violations(trial.metrics, limits),
        # NSGA-II only breeds from trials that have a generation.
        system_attrs={optuna.samplers.NSGAIISampler._get_generation_key(): 0},
    )
