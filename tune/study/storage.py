"""The storage of a search's study: Optuna's SQLite file, read once and written one transaction per event."""

from __future__ import annotations

import copy
import threading
from collections.abc import Container, Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tune.study.sqlite_writes import write_changes


class SoleWriterStorage(BaseStorage):  # type: ignore[misc]  # mypy is told nothing of Optuna
    """A storage for the study of a run directory, whose lock leaves the file to one process at a time.

    Optuna's own asks the file for every running trial again at each draw of a parameter, and commits each parameter
    and each attribute by itself, a dozen times per trial. Here memory answers all reads, and a trial is written
    whole: by :meth:`flush`, and, before anyone learns of its end, when it ends. To a process that opens the file
    after a kill, what was not flushed never happened. Ids and numbers are those of the file, which stays an
    ordinary study for any other reader.

    The file holds one study. Errors are the file's own, optuna's StorageInternalError where a write fails.
    """

    def __init__(self, file: RDBStorage) -> None:
        self._file = file
        self._lock = threading.RLock()
        self._study_id: int | None = None
        self._name: str | None = None
        self._directions: list[StudyDirection] = []
        self._attributes: dict[str, Any] = {}
        self._trials: list[FrozenTrial] = []
        self._numbers: dict[int, int] = {}
        self._open: set[int] = set()
        """Numbers of the trials that have not ended."""
        self._distributions: dict[str, BaseDistribution] = {}
        self._unwritten: dict[int, FrozenTrial | None] = {}
        """The trials that the file does not have as they are, by id in order: as it has them, None where not at all."""

    def flush(self) -> None:
        """Write all that was not written yet.

        Raises:
            StorageInternalError: the file refuses a write, or another program has added trials to it.
        """
        with self._lock:
            if self._unwritten:
                changes = [(old, self._trials[self._numbers[key]]) for key, old in self._unwritten.items()]
                write_changes(self._file, self._study(), changes)
                self._unwritten.clear()

    def _study(self) -> int:
        assert self._study_id is not None, "a study is created or found by its name first"
        return self._study_id

    def _load(self, study_id: int) -> None:
        if self._study_id == study_id:
            return
        assert self._study_id is None, "the file of a search holds one study"
        self._study_id = study_id
        self._name = self._file.get_study_name_from_id(study_id)
        self._directions = self._file.get_study_directions(study_id)
        self._attributes = self._file.get_study_system_attrs(study_id)
        for trial in self._file.get_all_trials(study_id, deepcopy=False):
            self._add(trial)

    def _add(self, trial: FrozenTrial) -> None:
        self._trials.append(trial)
        self._numbers[trial._trial_id] = trial.number
        if not trial.state.is_finished():
            self._open.add(trial.number)
        for name, distribution in trial.distributions.items():
            self._distributions.setdefault(name, distribution)

    def _change(self, trial_id: int) -> FrozenTrial:
        """Return a copy of the trial in the place of the old one, for readers keep what they were given."""
        old = self._trials[self._numbers[trial_id]]
        self.check_trial_is_updatable(trial_id, old.state)
        self._unwritten.setdefault(trial_id, old)
        trial = copy.copy(old)
        self._trials[trial.number] = trial
        return trial

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Create the study in the file."""
        with self._lock:
            study_id: int = self._file.create_new_study(directions, study_name)
            self._load(study_id)
            return study_id

    def delete_study(self, study_id: int) -> None:
        """Refuse: a run directory is deleted as a whole."""
        raise NotImplementedError("The study of a search is deleted with its run directory")

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write an attribute of the study at once."""
        self._file.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write an attribute of the study at once, unless it is there already."""
        with self._lock:
            if key not in self._attributes or self._attributes[key] != value:
                self._file.set_study_system_attr(study_id, key, value)
                self._attributes = {**self._attributes, key: value}

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the study's id; the first call reads the study."""
        with self._lock:
            if self._study_id is None or study_name != self._name:
                self._load(self._file.get_study_id_from_name(study_name))
            return self._study()

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the study's name."""
        assert self._name is not None, "a study is created or found by its name first"
        return self._name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the direction of each objective."""
        return self._directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the study's attributes of the user's."""
        attributes: dict[str, Any] = self._file.get_study_user_attrs(study_id)
        return attributes

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the study's attributes of Optuna's."""
        return self._attributes

    def get_all_studies(self) -> list[Any]:
        """Return what the file says of its studies."""
        studies: list[Any] = self._file.get_all_studies()
        return studies

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a running trial, to be flushed, or a copy of ``template_trial``, written at once."""
        with self._lock:
            trial = optuna.trial.create_trial(state=TrialState.RUNNING) if template_trial is None else template_trial
            trial = copy.deepcopy(trial)
            if template_trial is None:
                trial.datetime_start = datetime.now()
            trial.number = len(self._trials)
            trial._trial_id = self._trials[-1]._trial_id + 1 if self._trials else 1
            self._add(trial)
            self._unwritten[trial._trial_id] = None
            if template_trial is not None:
                self.flush()
            return int(trial._trial_id)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Give a running trial a parameter, to be flushed."""
        with self._lock:
            check_distribution_compatibility(self._distributions.setdefault(param_name, distribution), distribution)
            trial = self._change(trial_id)
            trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
            trial.distributions = {**trial.distributions, param_name: distribution}

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Change a trial's state; its end is written, with all that was not, before this returns."""
        with self._lock:
            if state is TrialState.RUNNING and self._trials[self._numbers[trial_id]].state is not TrialState.WAITING:
                return False
            trial = self._change(trial_id)
            trial.state = state
            if values is not None:
                trial.values = list(values)
            if state is TrialState.RUNNING:
                trial.datetime_start = datetime.now()
            if state.is_finished():
                trial.datetime_complete = datetime.now()
                self.flush()
                self._open.discard(trial.number)
            return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Give a running trial an intermediate value, to be flushed."""
        with self._lock:
            trial = self._change(trial_id)
            trial.intermediate_values = {**trial.intermediate_values, step: intermediate_value}

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Give a running trial an attribute of the user's, to be flushed."""
        with self._lock:
            trial = self._change(trial_id)
            trial.user_attrs = {**trial.user_attrs, key: value}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Give a running trial an attribute of Optuna's, to be flushed."""
        with self._lock:
            trial = self._change(trial_id)
            trial.system_attrs = {**trial.system_attrs, key: value}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return the trial.

        Raises:
            KeyError: there is none of this id.
        """
        trial = self._trials[self._numbers[trial_id]]
        if not trial.state.is_finished():
            # Optuna notes a running trial's draws and attributes in what it was given.
            trial = copy.copy(trial)
            trial.params, trial.distributions = dict(trial.params), dict(trial.distributions)
            trial.user_attrs, trial.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
        return trial

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials by number."""
        with self._lock:
            if states is None:
                trials = list(self._trials)
            elif not any(state in states for state in TrialState if state.is_finished()):
                unfinished = (self._trials[number] for number in sorted(self._open))
                trials = [trial for trial in unfinished if trial.state in states]
            else:
                trials = [trial for trial in self._trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


def flush(study: optuna.Study) -> None:
    """Write what the study's storage holds back, where it is one that does.

    Raises:
        StorageInternalError: as :meth:`SoleWriterStorage.flush`.
    """
    if isinstance(study._storage, SoleWriterStorage):
        study._storage.flush()
