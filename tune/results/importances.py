"""The importance of each setting for whether a method's trial reaches the front."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from tune.study.baselines import SAMPLED
from tune.study.storage import read_study

MIN_TRIALS = 4
"""Minimum number of complete sampled trials for an estimate."""


def load_trials(study_file: Path) -> list[FrozenTrial]:
    """Return the trials of a search's study."""
    trials: list[FrozenTrial] = read_study(study_file).get_trials()
    return trials


def importances(trials: Sequence[FrozenTrial], directions: Sequence[str]) -> dict[str, float]:
    """Return each setting's share in whether a trial is among the best, the largest share first. The shares sum to 1.

    The shares come from PED-ANOVA (Watanabe et al., IJCAI 2023, arXiv 2304.10255). With several objectives, the best
    trials are those that non-dominated sorting puts first: at least five of them, and at most half of all. The two
    baselines are left out, since their settings may be outside of the space. The result is empty if fewer than four
    sampled trials are complete.
    """
    sampled = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.user_attrs.get("role") == SAMPLED and trial.params
    ]
    if len(sampled) < MIN_TRIALS:
        return {}
    study = optuna.create_study(directions=["minimize" if way == "min" else "maximize" for way in directions])
    study.add_trials(sampled)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, 5 / len(sampled))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in sorted(found.items(), key=lambda item: -item[1])}
