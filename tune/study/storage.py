"""The study file of a search: an Optuna journal, written once per event by the process that searches."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from threading import RLock
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from ofmu.errors import RunError, StorageError
from ofmu.io.files import storage_errors, sync

STUDY_NAME = "ofmu"

Entry = dict[str, Any]
"""One operation of Optuna's journal, such as the creation of a trial or the draw of one parameter."""


class BufferedJournalBackend(BaseJournalBackend):  # type: ignore[misc]  # mypy is told nothing of Optuna
    """A journal file that one process writes, for one :class:`optuna.storages.JournalStorage`.

    Optuna's JournalFileBackend locks, opens and syncs the file for each parameter and each attribute, about twenty
    times per trial. This backend keeps the entries in memory and writes them together: in :meth:`flush`, and when a
    trial finishes, before the caller learns that the trial is stored. Each write is synced to disk. A crash loses the
    entries since the last write. If a write fails, the file stays as it was, and the entries stay in memory for the
    next write. Reads ignore a last line that a crash left incomplete; the next write removes the line.

    The file has the format of JournalFileBackend, so other programs, such as optuna-dashboard, can open the file.
    They may also set attributes of the study during a search. Any other change by another program is an error.

    Raises:
        RunError: a line of the file is no journal entry.
        StorageError: the disk refuses a write, or another program has changed trials.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = RLock()
        self._start, self._size, self._excess = _measure(path)
        """The number of the first of ``_lines``, the bytes of the file's whole entries, and those after them."""
        self._lines: list[bytes] = []
        """The entries that the storage has not read, or that the file does not hold."""
        self._unwritten = 0
        """How many of the last ``_lines`` the file does not hold."""
        self._changed: set[int] = set()
        """Ids of the trials that entries of this object have changed since :meth:`take_changed`."""

    def read_logs(self, log_number_from: int) -> Iterable[Entry]:
        """Return the entries from a number on. Entries that this object has added come from memory."""
        with self._lock:
            start, ahead = self._start, log_number_from - self._start
            added = [json.loads(line) for line in self._lines[max(ahead, 0) :]]
            read_and_written = min(ahead, len(self._lines) - self._unwritten)
            if read_and_written > 0:
                del self._lines[:read_and_written]
                self._start += read_and_written
        return added if ahead >= 0 else chain(_read(self._path, log_number_from, start), added)

    def append_logs(self, logs: list[Entry]) -> None:
        """Add entries. If a trial finishes by one of them, write them and all earlier ones."""
        lines = [json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in logs]
        with self._lock:
            self._changed.update(entry["trial_id"] for entry in logs if "trial_id" in entry)
            if any(_finishes_trial(entry) for entry in logs):
                self._write(lines)
            else:
                self._lines += lines
                self._unwritten += len(lines)

    def flush(self) -> None:
        """Write the entries that the file does not hold."""
        with self._lock:
            if self._unwritten:
                self._write([])

    def take_changed(self) -> set[int]:
        """Return the ids of trials that were changed since the last call; new trials are not among them."""
        with self._lock:
            changed, self._changed = self._changed, set()
        return changed

    def _write(self, new: list[bytes]) -> None:
        """Append the unwritten entries and ``new`` ones to the file: all of them or none."""
        data = b"".join([*self._lines[len(self._lines) - self._unwritten :], *new])
        create = 0 if self._size else os.O_CREAT
        if not create and not self._path.is_file():
            raise StorageError(
                f"{self._path} was deleted or moved during the search: restore its directory, or start a new search"
            )
        with storage_errors(self._path):
            file = os.open(self._path, os.O_RDWR | os.O_APPEND | create, 0o666)
            try:
                foreign = self._read_foreign(file)
                end = os.fstat(file).st_size
                try:
                    _write_whole(file, data)
                    if not end:
                        sync(self._path.parent)
                except BaseException:
                    with suppress(OSError):
                        os.ftruncate(file, end)
                    raise
                # No call between these lines, so a Ctrl-C cannot make this object and the file disagree.
                end += len(data)
                new = foreign + new
                self._size = end
                self._excess = 0
                self._unwritten = 0
                self._lines += new
            finally:
                os.close(file)

    def _read_foreign(self, file: int) -> list[bytes]:
        """Return the entries that another program has added, and remove an incomplete last line."""
        size = os.fstat(file).st_size
        if size in (self._size, self._size + self._excess):
            if size > self._size:
                os.ftruncate(file, self._size)
            return []
        lines = os.pread(file, size - self._size, self._size).splitlines(keepends=True) if size > self._size else []
        if not lines or not all(_sets_study_attribute(line) for line in lines):
            raise StorageError(
                f"Another program has changed {self._path} during the search: end that program, and resume the search"
            )
        return lines


class BufferedJournalStorage(JournalStorage):  # type: ignore[misc]  # mypy is told nothing of Optuna
    """Optuna's JournalStorage on a :class:`BufferedJournalBackend`, for one study.

    JournalStorage walks over all trials in each call of ``get_all_trials``: with 10,000 trials these calls take more
    time per suggestion than TPE. This class keeps the list of the study's trials, and replaces those that have changed.
    """

    def __init__(self, path: Path) -> None:
        self._journal = BufferedJournalBackend(path)
        super().__init__(self._journal)
        self._list_lock = RLock()
        self._study_id: int | None = None
        """The study whose trials are kept: the first one that is asked for its trials."""
        self._trials: list[FrozenTrial] = []
        self._ids: set[int] = set()
        self._changed: set[int] = set()
        """Ids of the trials that ``_trials`` does not hold as they are."""
        self._unfinished: set[int] = set()
        """Numbers of the running and waiting trials."""

    def flush(self) -> None:
        """Write all entries to the file; the exceptions are those of :class:`BufferedJournalBackend`."""
        self._journal.flush()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a running trial, or a copy of ``template_trial``, and return its id."""
        with self._list_lock:
            trial_id: int = super().create_new_trial(study_id, template_trial)
            if study_id == self._study_id:
                self._ids.add(trial_id)
                self._changed.add(trial_id)
        return trial_id

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return the trial.

        Raises:
            KeyError: there is no trial of this id.
        """
        trial = super().get_trial(trial_id)
        if not trial.state.is_finished():
            # optuna.Trial changes these mappings, and lists that get_all_trials has returned must not change.
            trial = copy.copy(trial)
            trial.params, trial.distributions = dict(trial.params), dict(trial.distributions)
            trial.user_attrs, trial.system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)
        return trial

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials in the given states, by number.

        Raises:
            KeyError: there is no study of this id.
        """
        with self._list_lock:
            if self._study_id is None:
                self._replace(super().get_all_trials(study_id, deepcopy=False))
                self._study_id = study_id
            if study_id != self._study_id:
                return list(super().get_all_trials(study_id, deepcopy, states))
            ids = (self._changed | self._journal.take_changed()) & self._ids
            self._replace([super(BufferedJournalStorage, self).get_trial(trial_id) for trial_id in sorted(ids)])
            self._changed.clear()
            if states is None:
                found = list(self._trials)
            elif any(state in states for state in TrialState if state.is_finished()):
                found = [trial for trial in self._trials if trial.state in states]
            else:
                unfinished = [self._trials[number] for number in sorted(self._unfinished)]
                found = [trial for trial in unfinished if trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def _replace(self, trials: Iterable[FrozenTrial]) -> None:
        """Keep trials, each in place of the earlier one of its number."""
        for trial in trials:
            self._trials[trial.number : trial.number + 1] = [trial]
            self._ids.add(trial._trial_id)
            if trial.state.is_finished():
                self._unfinished.discard(trial.number)
            else:
                self._unfinished.add(trial.number)


def flush(study: optuna.Study) -> None:
    """Write the entries that the study's storage has not written, if it is a :class:`BufferedJournalStorage`.

    Raises:
        StorageError: the disk refuses the write, or another program has changed trials.
    """
    if isinstance(study._storage, BufferedJournalStorage):
        study._storage.flush()


def read_study(path: Path) -> optuna.Study:
    """Return the study in a file that another process may be writing.

    Raises:
        RunError: the file holds no study, or a line of the file is no journal entry.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(path)
    if STUDY_NAME not in optuna.get_all_study_names(storage):
        raise RunError(f"{path} holds no trial yet: wait for the search, or resume it")
    return optuna.load_study(study_name=STUDY_NAME, storage=storage)


def open_storage(path: Path) -> BufferedJournalStorage:
    """Return the storage in a file, which may not exist yet.

    Raises:
        RunError: the file is no journal, or an entry cannot be applied after the entries before it.
    """
    try:
        return BufferedJournalStorage(path)
    except (RunError, StorageError):
        raise
    except Exception as error:
        # Optuna applies the entries without checks, so a damaged entry raises anything.
        raise RunError(
            f"{path} is damaged ({type(error).__name__}: {error}): restore the file from a copy, or start a new search"
        ) from error


def _measure(path: Path) -> tuple[int, int, int]:
    """Return the number of whole lines in the file, their bytes, and the bytes of an incomplete last line."""
    if not path.is_file():
        return 0, 0, 0
    count, size, last = 0, 0, b""
    with path.open("rb") as file:
        for last in file:
            count += 1
            size += len(last)
    if last.endswith(b"\n") and _parse(last) is not None:
        return count, size, 0
    return max(count - 1, 0), size - len(last), len(last)


def _read(path: Path, start: int, stop: int) -> Iterator[Entry]:
    with path.open("rb") as file:
        for number, line in enumerate(islice(file, start, stop), start + 1):
            entry = _parse(line)
            if entry is None:
                raise RunError(
                    f"Line {number} of {path} is damaged: restore the file from a copy, or start a new search"
                )
            yield entry


def _parse(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _finishes_trial(entry: Entry) -> bool:
    return "trial_id" in entry and "state" in entry and TrialState(entry["state"]).is_finished()


def _sets_study_attribute(line: bytes) -> bool:
    entry = _parse(line) or {}
    return line.endswith(b"\n") and "study_id" in entry and not entry.keys().isdisjoint(("user_attr", "system_attr"))


def _write_whole(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
    os.fsync(file)
