"""Early stopping inside a trial: score the model at a rung, and ask the search's scheduler whether the trial ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from ofmu.errors import PrunedError, PruningRecord
from tune.early_stopping.config import EarlyStoppingConfig
from tune.space.measured import INTERMEDIATE_SUBSTITUTES

if TYPE_CHECKING:
    from ofmu.early_stopping import RoundState
    from ofmu.evaluation.scoring.partial import PartialEvaluation

Values = Mapping[str, float | None]
AnswerT = TypeVar("AnswerT")


class StopDecider(Protocol):
    """Decides for all trials of a search."""

    def should_stop(self, trial: int, round: int, total: int, values: Values) -> bool:
        """Return whether the trial ends after this round."""


@runtime_checkable
class SupportsPartialEvaluation(Protocol):
    """A task whose model can be scored on a few rows during a run."""

    def partial_evaluation(self, rows: int) -> PartialEvaluation:
        """Return the evaluation on at most ``rows`` rows of each set."""


@dataclass(frozen=True)
class EarlyStopping:
    """Early stopping of one search. An object can be pickled, so that it reaches the trials' processes."""

    config: EarlyStoppingConfig
    objectives: tuple[str, ...]
    decider: StopDecider

    def callback_for(self, trial: int) -> EarlyStoppingCallback:
        """Return the round callback of one trial."""
        return EarlyStoppingCallback(self, trial)


class EarlyStoppingCallback:
    """A round callback that ends the trial at a rung if the search's scheduler says so.

    On several ranks, all ranks score the model together, rank 0 asks the scheduler, and all ranks get the same answer.
    """

    def __init__(self, early_stopping: EarlyStopping, trial: int) -> None:
        self._config, self._objectives = early_stopping.config, early_stopping.objectives
        self._decider, self._trial = early_stopping.decider, trial
        self._scores = PartialScores(early_stopping.config.rows)

    def __call__(self, state: RoundState) -> None:
        """Do nothing between rungs. At a rung, score the model and ask the scheduler.

        Raises:
            PrunedError: the scheduler stops the trial.
            StorageError: the report could not be stored.
        """
        if state.round not in self._config.rung_rounds(state.total):
            return
        values = intermediate_values(self._objectives, self._metrics(state), state.record)
        stops = ask_on_rank_0(lambda: self._decider.should_stop(self._trial, state.round, state.total, values))
        if stops:
            rung = self._config.level_reached(state.round, state.total)
            raise PrunedError(PruningRecord(round=state.round, total=state.total, rung=rung, objectives=values))

    def _metrics(self, state: RoundState) -> dict[str, float | None]:
        return self._scores.metrics(state)


class PartialScores:
    """Scores the model of a run on a few rows after a round. What the first evaluation loads is kept."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._evaluation: PartialEvaluation | None = None

    def metrics(self, state: RoundState) -> dict[str, float | None]:
        """Return the metrics of a partial evaluation, and the peak memory; collective."""
        # The driver of a search imports this file without torch.
        from ofmu.engine.cost import peak_memory_per_rank

        if not isinstance(state.task, SupportsPartialEvaluation):
            raise TypeError(f"a {type(state.task).__name__} cannot be scored during a run")
        if self._evaluation is None:
            self._evaluation = state.task.partial_evaluation(self._rows)
        found = self._evaluation.metrics(state.engine, state.reference_scores).values
        peak = max(max(peaks.values()) for peaks in peak_memory_per_rank())
        return {**found, "peak_memory_bytes": float(peak)}


def ask_on_rank_0(ask: Callable[[], AnswerT]) -> AnswerT:
    """Return on every rank what ``ask`` returns on rank 0; collective.

    Raises:
        StorageError: ``ask`` raised it on rank 0.
    """
    # The driver of a search imports this file without torch.
    from ofmu.engine.rank_zero import on_rank_0

    return on_rank_0(ask)


def intermediate_values(
    objectives: tuple[str, ...], metrics: Mapping[str, float | None], record: Mapping[str, Any]
) -> dict[str, float | None]:
    """Return the objectives after a round. An objective that is missing or not finite is None.

    Args:
        objectives: the objectives' names. :data:`INTERMEDIATE_SUBSTITUTES` replaces some that need generated text.
        metrics: the metrics of a partial evaluation.
        record: the round's line of ``history.jsonl``, with the costs up to this round.
    """
    found = {**record, **metrics}
    return {name: finite_or_none(found.get(INTERMEDIATE_SUBSTITUTES.get(name, name))) for name in objectives}


def finite_or_none(value: float | None) -> float | None:
    """Return a value; None if it is missing or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None
