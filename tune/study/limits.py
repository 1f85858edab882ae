"""The bounds of a search's constraints as numbers, stored in its study.

A bound that is a share of the target's value becomes a number once that value is known: before the first trial if the
preparation has measured it, and else when the target's trial ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from ofmu.errors import ConfigError
from tune.space.constraints import Limits, limits_from_json, limits_to_json, resolve_limits
from tune.study.baselines import TARGET

if TYPE_CHECKING:
    from tune.config import SearchConfig

_LIMITS = "ofmu:limits"
"""The study's system attribute that holds the bounds."""


def read_limits(study: optuna.Study, config: SearchConfig) -> Limits | None:
    """Return the bounds of a study's constraints; None as long as a bound waits for the target's value.

    Raises:
        ValueError: the stored bounds are damaged.
    """
    if not config.search.constraints:
        return ()
    stored = study._storage.get_study_system_attrs(study._study_id).get(_LIMITS)
    return None if stored is None else limits_from_json(stored)


def store_limits(study: optuna.Study, config: SearchConfig, target: Mapping[str, Any]) -> Limits | None:
    """Store the bounds if the target's metrics suffice for all of them. Bounds that are stored never change.

    Args:
        study: the search's study.
        config: the search.
        target: the metrics of the untouched target that are known.

    Raises:
        ConfigError: a share of the target's value says nothing, or no value keeps both bounds of a metric.
    """
    known = read_limits(study, config)
    if known is not None:
        return known
    limits, unknown = resolve_limits(config.search.constraints, target)
    if unknown:
        return None
    study._storage.set_study_system_attr(study._study_id, _LIMITS, limits_to_json(limits))
    return limits


def check_target_can_tell(study: optuna.Study, config: SearchConfig) -> None:
    """Check that the target's trial, on which bounds wait, has not failed.

    Raises:
        ConfigError: it has failed, so these bounds have no value.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL, TrialState.PRUNED)):
        if trial.user_attrs.get("role") == TARGET:
            _, unknown = resolve_limits(config.search.constraints, {})
            raise ConfigError(
                f"The bound of search.constraints.{unknown[0]} is a share of the untouched target's value, and the "
                f"target's trial failed ({trial.user_attrs.get('reason')}): give a number in a new search"
            )
