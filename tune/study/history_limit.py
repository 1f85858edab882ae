"""What a sampler is shown of a long history: all of a short one, and a fixed number of trials of a longer one."""

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

from tune.results.pareto import Points, front_mask

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LEARNT_FROM = (TrialState.COMPLETE, TrialState.PRUNED)
BOUND = 256


def glimpse(costs: Points, bound: int) -> list[int]:
    """Return the indices of the trials to be shown of a history, in order: all where there are at most ``bound``.

    Args:
        costs: one row per trial by number, every objective to be minimised; NaN where a trial has none.
        bound: how many are shown of a longer history.

    A quarter are the best, front by front; a quarter the newest; the rest lie evenly over the others, so that what
    is not good keeps the density that it has. It depends on nothing but the history itself.
    """
    count = len(costs)
    if count <= bound:
        return list(range(count))
    chosen = np.zeros(count, dtype=bool)
    chosen[best(costs, bound // 4)] = True
    chosen[np.flatnonzero(~chosen)[-(bound // 4) :]] = True
    others = np.flatnonzero(~chosen)
    chosen[others[_evenly(len(others), bound - int(chosen.sum()))]] = True
    return np.flatnonzero(chosen).tolist()


def best(costs: Points, count: int) -> npt.NDArray[np.intp]:
    """Return the indices of ``count`` rows, front by front; of the last front's, evenly along the first objective.

    Rows with NaN are left out, so that fewer may be returned.
    """
    found: list[npt.NDArray[np.intp]] = []
    left = np.flatnonzero(~np.isnan(costs).any(axis=1))
    missing = min(count, len(left))
    while missing:
        mask = front_mask(costs[left])
        front = left[mask]
        if len(front) > missing:
            front = front[np.lexsort((front, costs[front, 0]))][_evenly(len(front), missing)]
        found.append(front)
        missing -= len(front)
        left = left[~mask]
    return np.concatenate(found) if found else left[:0]


def _evenly(length: int, count: int) -> npt.NDArray[np.intp]:
    """Return ``count`` of the indices below ``length``, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, count).round().astype(np.intp))


class GlimpsingSampler(BaseSampler):  # type: ignore[misc]  # mypy is told nothing of Optuna
    """Gives another sampler no more than ``bound`` finished trials to learn from.

    TPE sorts all trials and evaluates a density over all of them for each parameter: two seconds per suggestion
    after 10,000 trials. Where no more than ``bound`` trials are complete or pruned, suggestions are bit for bit
    those of ``sampler`` alone. What is shown follows from the study alone, so a resumed search goes on as an
    undisturbed one.
    """

    def __init__(self, sampler: BaseSampler, bound: int = BOUND) -> None:
        self._sampler, self._bound = sampler, bound
        self._shown: optuna.Study | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return what the sampler draws at once, once per trial."""
        self._shown = None
        space: dict[str, BaseDistribution] = self._sampler.infer_relative_search_space(self._of(study), trial)
        return space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return what the sampler draws at once."""
        drawn: dict[str, Any] = self._sampler.sample_relative(self._of(study), trial, search_space)
        return drawn

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return what the sampler draws for one parameter."""
        return self._sampler.sample_independent(self._of(study), trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Pass on that a trial begins."""
        self._sampler.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Pass on that a trial ends."""
        self._sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Pass on a new seed."""
        self._sampler.reseed_rng()

    def _of(self, study: optuna.Study) -> optuna.Study:
        """Return the study as the sampler is to see it while it draws one trial."""
        if self._shown is None:
            history = _HISTORIES.setdefault(study._storage, {}).setdefault(study._study_id, _History())
            trials = study.get_trials(deepcopy=False)
            history.read(study, trials)
            few = len(history.numbers) <= self._bound
            self._shown = study if few else _Glimpse(study, history.glimpse(trials, self._bound))
        return self._shown


class _History:
    """The costs of a study's finished trials, each read once: ten thousand are not read anew for every trial."""

    def __init__(self) -> None:
        self.numbers: npt.NDArray[np.intp] = np.empty(0, dtype=np.intp)
        """Numbers of the trials that are learnt from, in order."""
        self._costs: Points = np.empty((0, 0))
        self._read, self._open = 0, list[int]()

    def read(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        """Take in what has finished since the last time; ``trials`` are all of the study's, by number."""
        signs = [1.0 if direction == StudyDirection.MINIMIZE else -1.0 for direction in study.directions]
        looked_at = [trials[number] for number in (*self._open, *range(self._read, len(trials)))]
        self._read, self._open = len(trials), [trial.number for trial in looked_at if not trial.state.is_finished()]
        new = [trial for trial in looked_at if trial.state in LEARNT_FROM]
        if not new:
            return
        nothing = [np.nan] * len(signs)
        costs = np.array([trial.values or nothing for trial in new], dtype=float) * signs
        numbers = np.append(self.numbers, [trial.number for trial in new])
        order = np.argsort(numbers)
        self.numbers = numbers[order]
        self._costs = np.concatenate((self._costs.reshape(-1, len(signs)), costs))[order]

    def glimpse(self, trials: Sequence[FrozenTrial], bound: int) -> list[FrozenTrial]:
        """Return the trials that are shown, in order."""
        return [trials[self.numbers[index]] for index in glimpse(self._costs, bound)]


_HISTORIES: WeakKeyDictionary[optuna.storages.BaseStorage, dict[int, _History]] = WeakKeyDictionary()
"""By storage and study, since a sampler is made for every trial."""


class _Glimpse(optuna.Study):  # type: ignore[misc]  # mypy is told nothing of Optuna
    """A study that shows some of its finished trials, and all that run.

    As Optuna's own Hyperband does it, whose samplers see one bracket's trials.
    """

    def __init__(self, study: optuna.Study, finished: Sequence[FrozenTrial]) -> None:
        super().__init__(study.study_name, study._storage, study.sampler, study.pruner)
        self._finished = finished

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        running = super()._get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        shown = [*self._finished, *running]
        return sorted(
            (trial for trial in shown if states is None or trial.state in states), key=lambda trial: int(trial.number)
        )
