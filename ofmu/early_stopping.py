"""The callback after each round of a run: it may end the run, or keep the weights of a round for its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ofmu.engine.base import Engine
from ofmu.errors import PrunedError
from ofmu.round_decision import RoundDecision
from ofmu.run_files import RunFiles
from ofmu.task import Task


@dataclass(frozen=True, kw_only=True)
class RoundState:
    """The state of a run after a round. Only a :class:`RoundSelector` gets the state after the last round."""

    round: int
    """Rounds count from 1."""
    total: int
    """Rounds of a whole run."""
    record: Mapping[str, Any]
    """The round's line of ``history.jsonl``."""
    engine: Engine
    task: Task[Any]
    reference_scores: Path | None
    """File of the reference's scores."""
    kept_round: int | None = None
    """The round whose weights the run keeps; None if it keeps none."""


RoundCallback = Callable[[RoundState], RoundDecision | None]
"""Called on every rank with the same state. None: the run continues. To end the run without a result, raise
:class:`ofmu.errors.PrunedError` on all ranks."""


@runtime_checkable
class RoundSelector(Protocol):
    """A round callback that selects the round from which the model of the run comes."""

    def __call__(self, state: RoundState) -> RoundDecision | None:
        """Decide after a round. After the last round, what is decided has no effect."""

    def select(self, state: RoundState, candidates: Mapping[int, Mapping[str, float | None]]) -> int:
        """Return the round whose weights become the model; called once on every rank, at the end of the run.

        Args:
            state: the state after the last round that ran.
            candidates: the metrics of a whole evaluation, by round: of the last round, and of the kept one.
        """


def raise_if_pruned(directory: Path) -> None:
    """Raise if the run in ``directory`` ended early.

    Raises:
        PrunedError: the run ended early. The error holds the record that the run wrote.
    """
    record = RunFiles(directory).read_pruning_record()
    if record is not None:
        raise PrunedError(record)
