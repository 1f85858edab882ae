"""The base of the searchers that give trials to Ray Tune."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, TypeVar

from ray.tune.search import Searcher

from ofmu.errors import OfmuError, StorageError
from tune.execution.trial_records import TrialOutcome, TrialSpec

TrialT = TypeVar("TrialT")


class TrialSource(Searcher, ABC, Generic[TrialT]):  # type: ignore[misc]  # Ray ships no types
    """Give the specs of trials to Ray Tune, or to any other caller, and store how each trial ended.

    A running trial has a key, which is Ray Tune's trial id or a key of the caller. All state of a subclass lies in
    files, so Ray Tune's own save and restore do nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._running: dict[str, TrialT] = {}
        self.stopped_by: OfmuError | None = None
        """The error that ends the search: no trial starts and no end is stored. After a failed write, which is a
        StorageError, a resume continues."""

    @property
    def is_waiting(self) -> bool:
        """Whether no trial can start before a running trial ends."""
        return False

    @abstractmethod
    def _start_next(self) -> tuple[TrialT, TrialSpec] | None:
        """Return the next trial and its spec; None if no further trial is needed now."""

    @abstractmethod
    def _store_end(self, trial: TrialT, outcome: TrialOutcome) -> None:
        """Store how a trial ended. On a failed write, set ``stopped_by`` instead of raising.

        An exception would reach Ray Tune, and Ray Tune would count it as another failure of the trial.
        """

    @abstractmethod
    def _take_back(self, trial: TrialT) -> None:
        """Return the trial again when the next one is asked for. Its files stay, so it continues where it was."""

    def next_trial(self, key: str) -> TrialSpec | None:
        """Return the spec of the next trial, which then runs under ``key``; None if no further trial is needed now."""
        started = None if self.stopped_by is not None else self._start_next()
        if started is None:
            return None
        self._running[key], spec = started
        return spec

    def complete(self, key: str, outcome: TrialOutcome) -> None:
        """Store how the trial under ``key`` ended."""
        trial = self._running.pop(key)
        if outcome.storage_error is not None:
            self.stopped_by = StorageError(outcome.storage_error)
        else:
            self._store_end(trial, outcome)

    def fail(self, key: str, reason: str) -> None:
        """Store that a trial's process crashed for good. A key that does not run is ignored."""
        if key in self._running:
            self.complete(key, TrialOutcome(failure=reason))

    def take_back(self, key: str) -> None:
        """Hand the trial under ``key`` out again. A key that does not run is ignored."""
        if key in self._running:
            self._take_back(self._running.pop(key))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's spec for Ray Tune. None: ask again after a trial has ended. FINISHED: never again.

        Ray Tune never asks again after FINISHED, and a running trial may have to be handed out again.
        """
        spec = self.next_trial(trial_id)
        if spec is None and self.stopped_by is None and (self.is_waiting or self._running):
            return None
        return str(Searcher.FINISHED) if spec is None else spec.to_json()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Store how a trial ended. A crash is ignored: Ray Tune's callback calls :meth:`fail` with the reason."""
        if not error and trial_id in self._running:
            self.complete(trial_id, TrialOutcome.from_json(json.loads((result or {}).get("outcome", "{}"))))

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray Tune pickles the searcher for its own restore, which is never used."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file."""
        Path(checkpoint_path).write_text("{}", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""
