"""Warm starts: what earlier searches found, given to a new one before it draws its first setting.

Trials of the same task under settings that the new search might have drawn become *known* trials of its study: they
inform the sampler, and count neither to ``search.num_trials`` nor to the front. Of another task, another model's or
other data's, scores say nothing here, but settings do: its front's are the first to be run, behind the landmarks.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from ofmu.config.base import Section
from ofmu.config.files import validate
from ofmu.errors import ConfigError, OfmuError, RunError
from ofmu.io.files import write_json
from ofmu.provenance import differing_keys
from ofmu.run_config import UnlearnConfig
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory
from tune.space.objectives import objective_values
from tune.space.space import run_config
from tune.study.baselines import KNOWN, PAPER, SEARCHED, TARGET
from tune.study.samplers import draw
from tune.study.storage import flush, read_study

if TYPE_CHECKING:
    from tune.config import SearchConfig

_SCORES = ("target_scores", "reference_scores")
"""Parts of a preparation whose cache keys hash model, rows, encoding, evaluation and reference."""


class KnownTrial(Section):
    """A trial of an earlier search of the same task."""

    origin: str
    """Its run directory and number: ``/runs/first#7``."""
    settings: dict[str, Any]
    overrides: dict[str, Any]
    metrics: dict[str, float | None]


class FirstTrial(Section):
    """A setting of another task's front, to be run here first."""

    origin: str
    settings: dict[str, Any]


class HeadStart(Section):
    """All that a search was given at its start."""

    known: tuple[KnownTrial, ...] = ()
    first: tuple[FirstTrial, ...] = ()


def read_earlier_runs(config: SearchConfig, keys: Mapping[str, str] | None = None) -> HeadStart:
    """Read the runs that ``search.warm_start`` names; a warning says how many of their settings do not fit.

    ``keys`` are the cache keys of what was prepared for this search; without them two tasks are the same where the
    configs say so and, as far as both are known, the rows' hashes agree.

    Raises:
        RunError: there is no such search, or none of its trials is complete.
        ConfigError: it searched another method or other objectives.
    """
    known: dict[str, KnownTrial] = {}
    first: dict[str, FirstTrial] = {}
    for place in config.search.warm_start:
        earlier = _Earlier(place, config)
        if earlier.is_same_task(keys):
            fitting = earlier.known()
            known.update({trial.origin: trial for trial in fitting})
            asked, taken = earlier.searched, len(fitting)
        else:
            settings = earlier.front()
            first.update({json.dumps(trial.settings): trial for trial in settings})
            asked, taken = earlier.searched_front, len(settings)
        if taken < len(asked):
            warnings.warn(
                f"{len(asked) - taken} of {len(asked)} trials of {place} lie outside of what this search draws from, "
                "and are left out",
                stacklevel=2,
            )
    return HeadStart(known=tuple(known.values()), first=tuple(first.values()))


def keep_head_start(run: RunDirectory, head_start: HeadStart) -> None:
    """Store it in the new search's directory, which then needs the earlier ones no more.

    Raises:
        StorageError: the disk refuses the write.
    """
    write_json(run.warm_start_file, head_start.model_dump(mode="json"))


def plant_head_start(study: optuna.Study, config: SearchConfig, run: RunDirectory) -> None:
    """Add to the study what :func:`keep_head_start` stored, as far as it does not hold it yet."""
    if not run.warm_start_file.is_file():
        return
    stored = json.loads(run.warm_start_file.read_text(encoding="utf-8"))
    head_start = validate(HeadStart, stored)
    present = {trial.user_attrs.get("origin") for trial in study.get_trials(deepcopy=False)}
    for trial in head_start.known:
        if trial.origin not in present:
            study.add_trial(_planted(trial, config))
    for wanted in head_start.first:
        if wanted.origin not in present:
            study.enqueue_trial(wanted.settings, user_attrs={"origin": wanted.origin})
    flush(study)


class _Earlier:
    """One earlier search, seen from the new one."""

    def __init__(self, place: str, config: SearchConfig) -> None:
        self._place, self._ours = place, config
        self._run = RunDirectory.open_existing(place, to_read=True)
        self._theirs = self._run.read_config()
        if not self._run.study_file.is_file():
            raise RunError(self._sentence("has no finished trial"))
        self._trials: list[FrozenTrial] = read_study(self._run.study_file).get_trials(deepcopy=False)
        self._complete = [trial for trial in self._trials if trial.state is TrialState.COMPLETE]
        if all(trial.user_attrs.get("role") == KNOWN for trial in self._complete):
            raise RunError(self._sentence("has no complete trial"))
        if self._theirs.method.name != config.method.name:
            ours, theirs = config.method.name, self._theirs.method.name
            raise ConfigError(self._sentence(f"searched the method '{theirs}', and this search is of '{ours}'"))
        if self._theirs.objectives != config.objectives:
            raise ConfigError(
                self._sentence(
                    f"searched {_described(self._theirs.objectives)}, and this search {_described(config.objectives)}"
                )
            )

    def is_same_task(self, keys: Mapping[str, str] | None) -> bool:
        """Return whether a score there means the same here."""
        report = self._report_of_a_run()
        theirs: Mapping[str, str] = report.get("prepared") or {}
        if keys and theirs:
            return all(keys.get(part) == theirs.get(part) for part in _SCORES)
        differing = differing_keys(self._ours.unlearn, self._theirs.unlearn)
        if any(key != "cache_dir" for key in differing):
            return False
        return "data_hash" not in report or self._own_hash() in (None, report["data_hash"])

    @property
    def searched(self) -> list[FrozenTrial]:
        """Return the complete trials but for the landmarks, which every search runs itself."""
        return [trial for trial in self._complete if trial.user_attrs.get("role") not in (TARGET, PAPER)]

    @property
    def searched_front(self) -> list[FrozenTrial]:
        """Return the front's trials but for the landmarks."""
        numbers = SearchResult.from_trials(self._run, self._theirs, self._trials).front["trial"]
        trials = [self._trials[int(number)] for number in numbers]
        return [trial for trial in trials if trial.user_attrs.get("role") == SEARCHED]

    def known(self) -> list[KnownTrial]:
        """Return those complete trials that this search might have drawn."""
        found = [self._as_known(trial) for trial in self.searched]
        return [trial for trial in found if trial is not None]

    def front(self) -> list[FirstTrial]:
        """Return the front's settings, as far as this search's space holds them."""
        found = [self._as_first(trial) for trial in self.searched_front]
        return [trial for trial in found if trial is not None]

    def _as_known(self, trial: FrozenTrial) -> KnownTrial | None:
        found = self._inside(trial)
        if found is None:
            return None
        settings, overrides, ran, ours = found
        metrics = dict(trial.user_attrs.get("metrics", {}))
        if _own_settings(ran) != _own_settings(ours) or objective_values(metrics, self._ours.objectives)[0] is None:
            return None
        return KnownTrial(origin=self._origin(trial), settings=settings, overrides=overrides, metrics=metrics)

    def _as_first(self, trial: FrozenTrial) -> FirstTrial | None:
        found = self._inside(trial)
        if found is None:
            return None
        settings, _, ran, ours = found
        there, here = ran.model_dump(mode="json"), ours.model_dump(mode="json")
        if any(_at(there, key) != _at(here, key) for key in trial.user_attrs["overrides"]):
            return None
        return FirstTrial(origin=self._origin(trial), settings=settings)

    def _inside(self, trial: FrozenTrial) -> tuple[dict[str, Any], dict[str, Any], UnlearnConfig, UnlearnConfig] | None:
        """Return what this search would draw to run what the trial ran, what it would set, and both runs.

        None where the settings lie outside of its space, or contradict what it holds fixed.
        """
        space = self._ours.search.space
        try:
            ran = run_config(self._theirs, trial.user_attrs.get("overrides", {}))
            values = ran.model_dump(mode="json")
            fixed = optuna.trial.FixedTrial({key: _at(values, key) for key in space if space[key].kind != "fixed"})
            with warnings.catch_warnings():
                # it only warns of a value outside; create_trial refuses it
                warnings.simplefilter("ignore")
                overrides = draw(fixed, self._ours)
            create_trial(params=fixed.params, distributions=fixed.distributions, value=0.0)
            return dict(fixed.params), overrides, ran, run_config(self._ours, overrides)
        except (OfmuError, ValueError, KeyError):
            return None

    def _origin(self, trial: FrozenTrial) -> str:
        known = trial.user_attrs.get("origin") if trial.user_attrs.get("role") == KNOWN else None
        return str(known or f"{self._run.path}#{trial.number}")

    def _report_of_a_run(self) -> dict[str, Any]:
        for trial in self._complete:
            path = self._run.trial(trial.number) / "metrics.json"
            if path.is_file():
                return dict(json.loads(path.read_text(encoding="utf-8")))
        return {}

    def _own_hash(self) -> str | None:
        """Return the hash of this search's rows; None where they are images, or cannot be read from here."""
        from ofmu.data.load import load_data

        if not self._ours.traits.model_directories:
            return None
        try:
            return load_data(self._ours.data, self._ours.seed).content_hash
        except OfmuError:
            return None

    def _sentence(self, what: str) -> str:
        return f"search.warm_start names {self._place}, which {what}: name another run, or leave it out"


def _planted(trial: KnownTrial, config: SearchConfig) -> FrozenTrial:
    fixed = optuna.trial.FixedTrial(trial.settings)
    draw(fixed, config)
    values, _ = objective_values(trial.metrics, config.objectives)
    return create_trial(
        params=fixed.params,
        distributions=fixed.distributions,
        values=values,
        user_attrs={
            "role": KNOWN,
            "origin": trial.origin,
            "overrides": trial.overrides,
            "metrics": trial.metrics,
        },
        # NSGA-II breeds from trials that bear a generation alone
        system_attrs={optuna.samplers.NSGAIISampler._get_generation_key(): 0},
    )


def _own_settings(run: UnlearnConfig) -> dict[str, Any]:
    """Return what a run's scores depend on beside the task."""
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
