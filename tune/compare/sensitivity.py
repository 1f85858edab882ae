"""How much each setting decides whether a method's trial reaches the front."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from tune.study.baselines import SAMPLED
from tune.study.searcher import STUDY_NAME, storage_url

LEAST_TRIALS = 4
"""With fewer searched trials nothing is said of a setting."""


def load_trials(study_file: Path) -> list[FrozenTrial]:
    """Return the trials of a search's study."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials: list[FrozenTrial] = optuna.load_study(study_name=STUDY_NAME, storage=storage_url(study_file)).get_trials()
    return trials


def importances(trials: Sequence[FrozenTrial], directions: Sequence[str]) -> dict[str, float]:
    """Return each searched setting's share, summing to 1, in a trial's being among the best, the largest first.

    PED-ANOVA (Watanabe et al., IJCAI 2023, arXiv 2304.10255) on several objectives: the best are those that
    non-dominated sorting puts first, at least five of them, and at most half. The two landmarks are left out, since
    what they ran may lie outside the space. Empty where fewer than four searched trials are complete.
    """
    searched = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.user_attrs.get("role") == SAMPLED and trial.params
    ]
    if len(searched) < LEAST_TRIALS:
        return {}
    study = optuna.create_study(directions=["minimize" if way == "min" else "maximize" for way in directions])
    study.add_trials(searched)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, 5 / len(searched))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in sorted(found.items(), key=lambda item: -item[1])}
