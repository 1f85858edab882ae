"""Limit the number of finished trials that a sampler reads, so that a suggestion takes constant time."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tune.pareto import Points, Violations, fronts
from tune.space.constraints import stored_violations, total_violation

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SAMPLED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)
"""States of the finished trials that samplers learn from."""
MAX_HISTORY = 256
"""The default number of finished trials that a sampler reads."""


def select_history(costs: Points, limit: int, violations: Violations | None = None) -> list[int]:
    """Return the indices of at most ``limit`` trials of a history, in ascending order.

    A history of at most ``limit`` trials is returned whole. Of a longer one, a quarter of the selected trials are the
    best, front by front, and a quarter are the newest. The others lie evenly over the rest of the history, so that the
    sampler also sees how dense the poor trials are. The selection depends only on the arguments.

    Args:
        costs: one row per trial by number and one column per objective, all to be minimised; NaN for a missing value.
        limit: the maximum number of selected trials.
        violations: how far each trial violates the constraints. None: there are no constraints.
    """
    count = len(costs)
    if count <= limit:
        return list(range(count))
    selected = np.zeros(count, dtype=bool)
    selected[select_best(costs, limit // 4, violations)] = True
    selected[np.flatnonzero(~selected)[-(limit // 4) :]] = True
    others = np.flatnonzero(~selected)
    selected[others[_evenly_spaced(len(others), limit - int(selected.sum()))]] = True
    return np.flatnonzero(selected).tolist()


def select_best(costs: Points, count: int, violations: Violations | None = None) -> npt.NDArray[np.intp]:
    """Return the indices of ``count`` rows, front by front. Rows that violate constraints follow, the least first.

    If only a part of a front fits, that part lies evenly along the first objective. Rows with NaN are left out, so
    fewer than ``count`` indices may be returned.
    """
    found: list[npt.NDArray[np.intp]] = []
    left = np.flatnonzero(~np.isnan(costs).any(axis=1))
    infeasible = left[:0] if violations is None else left[violations[left] > 0]
    left = np.setdiff1d(left, infeasible)
    rest = count - len(left)
    missing = min(count, len(left))
    for place in fronts(costs[left]):
        front = left[place]
        if len(front) > missing:
            front = front[np.lexsort((front, costs[front, 0]))][_evenly_spaced(len(front), missing)]
        found.append(front)
        missing -= len(front)
        if missing == 0:
            break
    if violations is not None and rest > 0:
        found.append(infeasible[np.argsort(violations[infeasible], kind="stable")][:rest])
    return np.concatenate(found) if found else left[:0]


def _evenly_spaced(length: int, count: int) -> npt.NDArray[np.intp]:
    """Return ``count`` of the indices below ``length``, with the first and the last index."""
    return np.unique(np.linspace(0, length - 1, count).round().astype(np.intp))


class BoundedHistorySampler(BaseSampler):  # type: ignore[misc]  # mypy is told nothing of Optuna
    """Let another sampler read at most ``limit`` finished trials.

    TPE sorts all trials and evaluates a density over all of them for each parameter, which takes two seconds per
    suggestion after 10,000 trials. While at most ``limit`` trials are complete or pruned, the suggestions are bit for
    bit those of ``sampler``. The selected trials depend only on the study, so a resumed search suggests what an
    uninterrupted search suggests.
    """

    def __init__(self, sampler: BaseSampler, limit: int = MAX_HISTORY) -> None:
        self._sampler, self._limit = sampler, limit
        self._view: optuna.Study | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the search space of the sampler's joint draw; Optuna calls this first for each trial."""
        self._view = None
        space: dict[str, BaseDistribution] = self._sampler.infer_relative_search_space(self._view_of(study), trial)
        return space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the sampler's joint draw."""
        drawn: dict[str, Any] = self._sampler.sample_relative(self._view_of(study), trial, search_space)
        return drawn

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the sampler's draw of one parameter."""
        return self._sampler.sample_independent(self._view_of(study), trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Call the sampler's method."""
        self._sampler.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Call the sampler's method."""
        self._sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Call the sampler's method."""
        self._sampler.reseed_rng()

    def _view_of(self, study: optuna.Study) -> optuna.Study:
        """Return the study that the sampler reads while it draws one trial."""
        if self._view is None:
            history = _HISTORIES.setdefault(study._storage, {}).setdefault(study._study_id, _History())
            trials = study.get_trials(deepcopy=False)
            history.update(study, trials)
            is_short = len(history.numbers) <= self._limit
            self._view = study if is_short else _StudyView(study, history.select(trials, self._limit))
        return self._view


class _History:
    """The costs of a study's finished trials. Each trial is read once, not once per suggestion."""

    def __init__(self) -> None:
        self.numbers: npt.NDArray[np.intp] = np.empty(0, dtype=np.intp)
        """Numbers of the complete and pruned trials, in ascending order."""
        self._costs: Points = np.empty((0, 0))
        self._violations: Violations = np.empty(0)
        self._read, self._unfinished = 0, list[int]()

    def update(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        """Add the trials that have finished since the last call; ``trials`` are all trials of the study, by number."""
        signs = [1.0 if direction == StudyDirection.MINIMIZE else -1.0 for direction in study.directions]
        unread = [trials[number] for number in (*self._unfinished, *range(self._read, len(trials)))]
        self._read, self._unfinished = len(trials), [each.number for each in unread if not each.state.is_finished()]
        new = [trial for trial in unread if trial.state in SAMPLED_STATES]
        if not new:
            return
        no_values = [np.nan] * len(signs)
        costs = np.array([trial.values or no_values for trial in new], dtype=float) * signs
        numbers = np.append(self.numbers, [trial.number for trial in new])
        order = np.argsort(numbers)
        self.numbers = numbers[order]
        self._costs = np.concatenate((self._costs.reshape(-1, len(signs)), costs))[order]
        violations = [total_violation(stored_violations(trial.system_attrs)) for trial in new]
        self._violations = np.append(self._violations, violations)[order]

    def select(self, trials: Sequence[FrozenTrial], limit: int) -> list[FrozenTrial]:
        """Return at most ``limit`` finished trials, by number."""
        return [trials[self.numbers[index]] for index in select_history(self._costs, limit, self._violations)]


_HISTORIES: WeakKeyDictionary[optuna.storages.BaseStorage, dict[int, _History]] = WeakKeyDictionary()
"""By storage and study, because a search makes a new sampler for each trial."""


class _StudyView(optuna.Study):  # type: ignore[misc]  # mypy is told nothing of Optuna
    """A study with the given finished trials, and those trials of another study that run at the first call.

    Optuna's Hyperband limits what its samplers read in the same way.
    """

    def __init__(self, study: optuna.Study, finished: Sequence[FrozenTrial]) -> None:
        super().__init__(study.study_name, study._storage, study.sampler, study.pruner)
        self._finished = finished
        self._shown: list[FrozenTrial] | None = None

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        if self._shown is None:
            # The storage looks at all trials to find these, and TPE asks twice for each parameter.
            running = super()._get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            self._shown = sorted((*self._finished, *running), key=lambda trial: int(trial.number))
        return [trial for trial in self._shown if states is None or trial.state in states]
