"""Checks of a stored study: its trials' attributes, the config of its start, and the results beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ofmu.errors import DataError, RunError
from ofmu.io.files import read_json
from ofmu.provenance import flat_settings
from ofmu.run_files import METRICS, PRUNED, SCORES
from tune.rundir.search_dir import RunDirectory
from tune.rundir.search_files import TRIALS
from tune.space.constraints import VIOLATIONS
from tune.study.storage import read_study

if TYPE_CHECKING:
    from tune.config import SearchConfig

_CONFIG = "ofmu:config"
"""The study's system attribute that holds the settings of its start."""
_MAY_CHANGE = (*RunDirectory.resumable, "cache_dir")
_ATTRIBUTES: Mapping[str, type | tuple[type, ...]] = {
    "role": str,
    "origin": str,
    "reason": str,
    "overrides": dict,
    "metrics": dict,
    "objectives": dict,
}


def store_config(study: optuna.Study, config: SearchConfig) -> None:
    """Store the settings that a resume cannot change, unless the study holds them already."""
    if _CONFIG not in _system_attributes(study):
        study._storage.set_study_system_attr(study._study_id, _CONFIG, _fixed_settings(config))


def check_content(run: RunDirectory, config: SearchConfig) -> dict[str, str] | None:
    """Check that rows, models, reference and modules are those of the start of a search. Return their hashes.

    An edited config may name other rows too. Then the error is that of the config, which is the cause.

    Raises:
        RunError: something has changed, the config is not that of the trials, or an earlier version scored them.
        OfmuError: something cannot be read.
    """
    _check_rouge(run, config)
    try:
        return run.check_content(config.unlearn)
    except RunError:
        if run.study_file.is_file():
            check_study(read_study(run.study_file), config, run.study_file)
        raise


def _check_rouge(run: RunDirectory, config: SearchConfig) -> None:
    """Check on one trial that the answers' ROUGE is that of this version. Earlier ones read Latin script only."""
    if config.data.kind != "language" or not config.evaluation.rouge:
        return
    # This import loads torch, which takes seconds.
    from ofmu.evaluation.score_files import count_earlier_rouge
    from ofmu.evaluation.scores import Scores

    # The first trial is the untouched target, which knows the answers. A loop of the user may write other files there.
    file = next(iter(sorted(run.trials.glob(f"*/{SCORES}"))), None)
    with suppress(DataError):
        if file is not None and count_earlier_rouge(Scores.from_json(read_json(file), str(file))):
            raise RunError(
                f"{run.display_path} holds trials of an earlier version, whose ROUGE read Latin script only, so new "
                "trials could not be compared with them: start a new search"
            )


def check_study(study: optuna.Study, config: SearchConfig, path: Path) -> None:
    """Check that a study is one of ours, and that it began under this config.

    Args:
        study: the study.
        config: the config in the run directory.
        path: the study's file, for errors.

    Raises:
        RunError: an attribute of a trial is damaged, or the config is another one.
    """
    for trial in study.get_trials(deepcopy=False):
        problem = _problem(trial, len(config.objectives))
        if problem is not None:
            raise RunError(
                f"{path} is damaged (trial {trial.number} {problem}): restore the file from a copy, or start a new "
                "search"
            )
    stored = _system_attributes(study).get(_CONFIG)
    if isinstance(stored, dict):
        settings = _fixed_settings(config)
        # Studies of older versions have neither constraints nor checkpoint selection.
        stored = {"search.constraints": {}, "search.checkpoint_selection.enabled": False} | stored
        changed = [key for key in settings if key in stored and stored[key] != settings[key]]
    else:
        names = study.metric_names
        changed = ["search.objectives"] if names is not None and names != list(config.objectives) else []
    if changed:
        raise RunError(
            f"{path.parent} has a config.yaml that is not the config of its trials: {', '.join(changed[:5])} "
            "changed after the start; restore what changed, or start a new search"
        )


def check_results_are_stored(study: optuna.Study | None, path: Path) -> None:
    """Check that the study knows each trial whose results lie beside it. Otherwise a resume would start over.

    Args:
        study: the study; None if the file holds none.
        path: the study's file, in the run directory.

    Raises:
        RunError: the study has lost a trial.
    """
    trials = [] if study is None else study.get_trials(deepcopy=False)
    started = {trial.number for trial in trials if trial.state != TrialState.WAITING}
    folder = path.with_name(TRIALS)
    names = [entry.name for entry in folder.iterdir() if entry.name.isdecimal()] if folder.is_dir() else []
    lost = sorted(
        name
        for name in names
        if int(name) not in started and any((folder / name / marker).is_file() for marker in (METRICS, PRUNED))
    )
    if lost:
        raise RunError(
            f"{path} lacks trial {int(lost[0])}, whose results are in {folder / lost[0]}: restore the file from a "
            "copy, or start a new search in another directory"
        )


def _system_attributes(study: optuna.Study) -> dict[str, Any]:
    attributes: dict[str, Any] = study._storage.get_study_system_attrs(study._study_id)
    return attributes


def _fixed_settings(config: SearchConfig) -> dict[str, Any]:
    """Return the settings that all trials share, by dotted key, as JSON values."""
    mapping = config.model_dump(mode="json", exclude={"search": {"space", "objectives", "constraints"}})
    search = config.model_dump(mode="json", include={"search": {"space", "constraints"}})["search"]
    # The user chooses the keys of these mappings, so each counts as one setting. Objectives have an order.
    objectives = [[name, way] for name, way in config.objectives.items()]
    flat = dict(flat_settings(mapping)) | {
        "search.space": search["space"],
        "search.objectives": objectives,
        "search.constraints": search["constraints"],
    }
    return {key: value for key, value in flat.items() if not key.startswith(_MAY_CHANGE)}


def _problem(trial: FrozenTrial, objectives: int) -> str | None:
    """Return what is wrong with a trial; None if nothing is."""
    for name, kind in _ATTRIBUTES.items():
        value = trial.user_attrs.get(name)
        if value is not None and not isinstance(value, kind):
            return f"has a {type(value).__name__} as {name}"
    for name, value in (trial.user_attrs.get("metrics") or {}).items():
        if value is not None and not isinstance(value, int | float | str):
            return f"has a {type(value).__name__} as its metric {name}"
    cost = trial.user_attrs.get("gradient_evaluations")
    if cost is not None and not isinstance(cost, int | float):
        return f"has a {type(cost).__name__} as gradient_evaluations"
    for name, value in trial.system_attrs.items():
        if name.startswith(VIOLATIONS) and not (isinstance(value, int | float) and math.isfinite(value)):
            return f"has a damaged violation {name}"
    if trial.state == TrialState.COMPLETE:
        values = trial.values or []
        if len(values) != objectives or not all(math.isfinite(value) for value in values):
            return f"has the objectives {values}"
        if not isinstance(trial.user_attrs.get("metrics"), dict):
            return "has no metrics"
    return None
