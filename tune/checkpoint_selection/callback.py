"""Checkpoint selection inside a trial: score a round, ask the archive, keep weights, and select a round at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ofmu.errors import PrunedError, PruningRecord
from ofmu.round_decision import RoundDecision
from tune.checkpoint_selection.archive import Scored, Verdict
from tune.checkpoint_selection.config import CheckpointSelectionConfig
from tune.early_stopping.callback import PartialScores, ask_on_rank_0, finite_or_none, intermediate_values
from tune.space.constraints import Limits, total_violation, violations

if TYPE_CHECKING:
    from ofmu.early_stopping import RoundState


class Archive(Protocol):
    """Decides for all trials of a search; see :class:`tune.checkpoint_selection.archive.RoundArchive`."""

    def report(self, trial: int, round: int, total: int, scored: Scored) -> Verdict:
        """Return what a trial does after a round."""

    def select(self, trial: int, candidates: Mapping[int, Scored]) -> int:
        """Return the round for which a trial stands."""


@dataclass(frozen=True)
class CheckpointSelection:
    """Checkpoint selection of one search. An object can be pickled, so that it reaches the trials' processes."""

    config: CheckpointSelectionConfig
    objectives: tuple[str, ...]
    limits: Limits
    archive: Archive

    def callback_for(self, trial: int) -> CheckpointSelectionCallback:
        """Return the round callback of one trial."""
        return CheckpointSelectionCallback(self, trial)


class CheckpointSelectionCallback:
    """A round selector that asks the search's archive. On several ranks, all ranks get the same answers."""

    def __init__(self, selection: CheckpointSelection, trial: int) -> None:
        self._config, self._objectives, self._limits = selection.config, selection.objectives, selection.limits
        self._archive, self._trial = selection.archive, trial
        self._scores = PartialScores(selection.config.rows)

    def __call__(self, state: RoundState) -> RoundDecision | None:
        """Score the model at the stated rounds and after the last one. Keep its weights, or end the run, if asked to.

        Raises:
            PrunedError: the trial ends, and has kept no round.
            StorageError: the report could not be stored.
        """
        if state.round != state.total and state.round not in self._config.scored_rounds(state.total):
            return None
        metrics = self._scores.metrics(state)
        values = intermediate_values(self._objectives, metrics, state.record)
        scored = Scored(values, self._violation(metrics))
        verdict = ask_on_rank_0(lambda: self._archive.report(self._trial, state.round, state.total, scored))
        if verdict.stop and state.kept_round is None:
            raise PrunedError(PruningRecord(round=state.round, total=state.total, objectives=values))
        return RoundDecision(keep=verdict.keep, end=verdict.stop)

    def select(self, state: RoundState, candidates: Mapping[int, Mapping[str, float | None]]) -> int:
        """Return the round that the archive selects.

        Raises:
            StorageError: the call could not be stored.
        """
        scored = {
            round: Scored(
                {name: finite_or_none(metrics.get(name)) for name in self._objectives}, self._violation(metrics)
            )
            for round, metrics in candidates.items()
        }
        return ask_on_rank_0(lambda: self._archive.select(self._trial, scored))

    def _violation(self, metrics: Mapping[str, float | None]) -> float:
        """Return the sum of the violations of the bounds whose metrics are known."""
        known = tuple(limit for limit in self._limits if finite_or_none(metrics.get(limit.metric)) is not None)
        return total_violation(violations(metrics, known))
