"""Early stopping of a run: a callback after each round may end the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofmu.engine.base import Engine
from ofmu.errors import PrunedError
from ofmu.run_files import RunFiles
from ofmu.task import Task


@dataclass(frozen=True, kw_only=True)
class RoundState:
    """The state of a run after a round. There is no state after the last round."""

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


RoundCallback = Callable[[RoundState], None]
"""Called on every rank with the same state. To end the run, raise :class:`ofmu.errors.PrunedError` on all ranks."""


def raise_if_pruned(directory: Path) -> None:
    """Raise if the run in ``directory`` ended early.

    Raises:
        PrunedError: the run ended early. The error holds the record that the run wrote.
    """
    record = RunFiles(directory).read_pruning_record()
    if record is not None:
        raise PrunedError(record)
