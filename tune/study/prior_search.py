"""An earlier search, as a new search sees it: whether both have the same task, and what the new search can use."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from ofmu.config.base import Section
from ofmu.data.load import load_data
from ofmu.errors import ConfigError, OfmuError, RunError
from ofmu.provenance import differing_keys
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles
from tune.pareto import as_costs, constrained_front_mask
from tune.rundir.search_dir import RunDirectory
from tune.space.constraints import stored_violations, total_violation
from tune.space.draw import draw
from tune.space.objectives import objective_values
from tune.space.space import run_config
from tune.study.baselines import PRIOR, PUBLISHED, SAMPLED, TARGET
from tune.study.checks import check_study
from tune.study.storage import read_study

if TYPE_CHECKING:
    from tune.config import SearchConfig

_SCORES = ("target_scores", "reference_scores")
"""Parts of a preparation whose cache keys hash model, rows, encoding, evaluation and reference."""


class PriorTrial(Section):
    """A complete trial of an earlier search of the same task."""

    origin: str
    """Run directory and number of the trial: ``/runs/first#7``."""
    settings: dict[str, Any]
    """The parameters under which this search's study stores the trial."""
    overrides: dict[str, Any]
    """What the trial set, by dotted config key."""
    metrics: dict[str, float | None]


class InitialPoint(Section):
    """A setting from the front of another task's search. It runs first in this search."""

    origin: str
    """Run directory and number of the trial: ``/runs/first#7``."""
    settings: dict[str, Any]
    """The parameters under which this search's study stores the setting."""


@dataclass(frozen=True, kw_only=True)
class _Translation:
    """A trial of the earlier search in the terms of the new search."""

    settings: dict[str, Any]
    """The parameters that the new search would draw to run what the trial ran."""
    overrides: dict[str, Any]
    """What the new search would set for these parameters."""
    theirs: UnlearnConfig
    """The run of the earlier search."""
    ours: UnlearnConfig
    """The run of the new search."""


class PriorSearch:
    """One earlier search.

    Args:
        place: the earlier search's run directory.
        config: the new search.
        objectives_known: False: the preparation may still choose other objectives for the new search, so the objectives
            of the two are not compared.

    Raises:
        RunError: there is no such search, or none of its trials is complete.
        ConfigError: it searched another method or other objectives, or its config names a module of the user that the
            new search does not name.
    """

    def __init__(self, place: str, config: SearchConfig, *, objectives_known: bool = True) -> None:
        self._place, self._ours = place, config
        self._run = RunDirectory.open_existing(place, to_read=True)
        self._theirs = self._run.read_config(plugins=config.plugins)
        if not self._run.study_file.is_file():
            raise RunError(self._sentence("has no finished trial"))
        study = read_study(self._run.study_file)
        check_study(study, self._theirs, self._run.study_file)
        self._complete: list[FrozenTrial] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        self._base, self._their_base = config.unlearn, self._theirs.unlearn
        self._check_comparable(objectives_known)

    def _check_comparable(self, objectives_known: bool) -> None:
        if all(trial.user_attrs.get("role") == PRIOR for trial in self._complete):
            raise RunError(self._sentence("has no complete trial"))
        ours, theirs = self._ours.method.name, self._theirs.method.name
        if theirs != ours:
            raise ConfigError(self._sentence(f"searched the method '{theirs}', and this search is of '{ours}'"))
        if objectives_known and self._theirs.objectives != self._ours.objectives:
            searched, sought = _described(self._theirs.objectives), _described(self._ours.objectives)
            raise ConfigError(self._sentence(f"searched {searched}, and this search {sought}"))

    def is_same_task(self, keys: Mapping[str, str] | None) -> bool:
        """Return whether a score of the earlier search has the same meaning in the new search.

        Args:
            keys: the cache keys of the new search's preparation. None: compare the configs, and the hashes of the rows
                if both are known.
        """
        report = self._any_report()
        theirs: Mapping[str, str] = report.get("prepared") or {}
        if keys and theirs:
            return all(keys.get(part) == theirs.get(part) for part in _SCORES)
        differing = differing_keys(self._base, self._their_base)
        if any(key != "cache_dir" for key in differing):
            return False
        return "data_hash" not in report or self._own_hash() in (None, report["data_hash"])

    def complete_trials(self) -> list[FrozenTrial]:
        """Return the complete trials without the baselines, which every search runs itself."""
        return [trial for trial in self._complete if trial.user_attrs.get("role") not in (TARGET, PUBLISHED)]

    def front_trials(self) -> list[FrozenTrial]:
        """Return the sampled trials of the front, ordered by the first objective."""
        names, directions = list(self._theirs.objectives), list(self._theirs.objectives.values())
        own = [trial for trial in self._complete if trial.user_attrs.get("role") != PRIOR]
        values = [[float(trial.user_attrs["metrics"][name]) for name in names] for trial in own]
        broken = np.array([total_violation(stored_violations(trial.system_attrs)) for trial in own])
        mask = constrained_front_mask(as_costs(values, directions), broken)
        members = np.flatnonzero(mask).tolist()
        ordered = [own[index] for index in sorted(members, key=lambda index: values[index][0])]
        return [trial for trial in ordered if trial.user_attrs.get("role") == SAMPLED]

    def prior_trials(self) -> list[PriorTrial]:
        """Return the complete trials that the new search could have drawn."""
        found = [self._as_prior_trial(trial) for trial in self.complete_trials()]
        return [trial for trial in found if trial is not None]

    def initial_points(self) -> list[InitialPoint]:
        """Return the settings of the front that lie inside the new search's space."""
        found = [self._as_initial_point(trial) for trial in self.front_trials()]
        return [point for point in found if point is not None]

    def _as_prior_trial(self, trial: FrozenTrial) -> PriorTrial | None:
        found = self._translated(trial)
        if found is None:
            return None
        metrics = dict(trial.user_attrs.get("metrics", {}))
        if _score_settings(found.theirs) != _score_settings(found.ours):
            return None
        if objective_values(metrics, self._ours.measured)[0] is None:
            return None
        return PriorTrial(
            origin=self._origin(trial), settings=found.settings, overrides=found.overrides, metrics=metrics
        )

    def _as_initial_point(self, trial: FrozenTrial) -> InitialPoint | None:
        found = self._translated(trial)
        if found is None:
            return None
        theirs, ours = found.theirs.model_dump(mode="json"), found.ours.model_dump(mode="json")
        if any(_at(theirs, key) != _at(ours, key) for key in trial.user_attrs["overrides"]):
            return None
        return InitialPoint(origin=self._origin(trial), settings=found.settings)

    def _translated(self, trial: FrozenTrial) -> _Translation | None:
        """Return None if the trial's settings lie outside the new space, or contradict what the new space fixes."""
        space = self._ours.search.space
        try:
            theirs = run_config(self._their_base, trial.user_attrs.get("overrides", {}))
            values = theirs.model_dump(mode="json")
            fixed = optuna.trial.FixedTrial({key: _at(values, key) for key in space if space[key].kind != "fixed"})
            with warnings.catch_warnings():
                # FixedTrial only warns of a value outside its range. create_trial raises.
                warnings.simplefilter("ignore")
                overrides = draw(fixed, space, self._base)
            create_trial(params=fixed.params, distributions=fixed.distributions, value=0.0)
            ours = run_config(self._base, overrides)
        except (OfmuError, ValueError, KeyError):
            return None
        return _Translation(settings=dict(fixed.params), overrides=overrides, theirs=theirs, ours=ours)

    def _origin(self, trial: FrozenTrial) -> str:
        earlier = trial.user_attrs.get("origin") if trial.user_attrs.get("role") == PRIOR else None
        return str(earlier or f"{self._run.path}#{trial.number}")

    def _any_report(self) -> dict[str, Any]:
        """Return the report of a complete run; empty if no run has left a report."""
        reports = (RunFiles(self._run.trial(trial.number)).read_report() for trial in self._complete)
        return next((report for report in reports if report is not None), {})

    def _own_hash(self) -> str | None:
        """Return the hash of the new search's rows; None for images, or if the rows cannot be read on this machine."""
        if not self._ours.traits.model_directories:
            return None
        try:
            return load_data(self._ours.data, self._ours.seed).content_hash
        except OfmuError:
            return None

    def _sentence(self, what: str) -> str:
        return f"search.warm_start names {self._place}, which {what}: name another run, or leave it out"


def _score_settings(run: UnlearnConfig) -> dict[str, Any]:
    """Return what a run's scores depend on, besides the task."""
    whole = run.model_dump(mode="json")
    return {
        "method": whole["method"],
        "adapter": whole["model"]["adapter"],
        "precision": whole["engine"]["precision"],
        "seed": whole["seed"],
    }


def _at(mapping: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return mapping[section][name]


def _described(objectives: Mapping[str, str]) -> str:
    return " and ".join(f"{name} ({way})" for name, way in objectives.items())
