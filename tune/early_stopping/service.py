"""The scheduler of a running search: a log on disk, the Ray actor that owns it, and the client that a trial calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tune.early_stopping.actor import answer_of, or_sentence, start_actor
from tune.early_stopping.callback import Values
from tune.early_stopping.config import EarlyStoppingConfig
from tune.early_stopping.report_log import ReportLog, RoundLine
from tune.early_stopping.rungs import RungScheduler
from tune.space.objectives import Direction

_LINE = TypeAdapter(RoundLine)


class PersistentRungScheduler:
    """A :class:`RungScheduler` that stores its reports in a file. A new object on the same file continues alike.

    A report is on disk before it is answered. Decisions depend only on the reports and their order, so the file holds
    only the reports: see :class:`tune.early_stopping.report_log.ReportLog`.

    Args:
        path: the file.
        directions: the objectives with their directions.
        config: the rule of early stopping.
        shown: the file's name in a message; None: ``path``.

    Raises:
        DataError: the file holds something else.
        StorageError: the file cannot be written.
    """

    def __init__(
        self, path: Path, directions: Mapping[str, Direction], config: EarlyStoppingConfig, shown: str | None = None
    ) -> None:
        self._log = ReportLog(path, _LINE, "early stopping", shown)
        self._scheduler = RungScheduler(directions, config)
        self._decisions: dict[tuple[int, int], bool] = {}
        for line in self._log.read():
            self._decide(line.trial, line.round, line.total, line.values)

    def should_stop(self, trial: int, round: int, total: int, values: Values) -> bool:
        """Return whether the trial ends after this round. A repeated round gets the same answer again.

        Raises:
            StorageError: this report or an earlier report could not be stored.
        """
        decided = self._decisions.get((trial, round))
        if decided is not None:
            return decided
        self._log.append({"trial": trial, "round": round, "total": total, "values": dict(values)})
        return self._decide(trial, round, total, values)

    def _decide(self, trial: int, round: int, total: int, values: Values) -> bool:
        stops = self._scheduler.report(trial, round, values, total) == "stop"
        self._decisions[trial, round] = stops
        return stops


class SchedulerActor:
    """A :class:`PersistentRungScheduler` in its own process. All trials of a search call it."""

    def __init__(self, path: str, directions: Mapping[str, Direction], config: Mapping[str, Any]) -> None:
        self._scheduler = PersistentRungScheduler(Path(path), directions, EarlyStoppingConfig.model_validate(config))

    def should_stop(self, trial: int, round: int, total: int, values: Values) -> bool | str:
        """Return whether the trial ends after this round, or the sentence of a failed write."""
        return or_sentence(lambda: self._scheduler.should_stop(trial, round, total, values))


@dataclass(frozen=True)
class SchedulerClient:
    """Calls a :class:`SchedulerActor` from a trial's process."""

    actor: Any
    """The actor's handle."""

    def should_stop(self, trial: int, round: int, total: int, values: Values) -> bool:
        """Return whether the trial ends after this round.

        Raises:
            StorageError: the report could not be stored.
        """
        return bool(answer_of(self.actor.should_stop.remote(trial, round, total, dict(values))))


def start_scheduler_actor(path: Path, directions: Mapping[str, Direction], config: EarlyStoppingConfig) -> Any:
    """Start the actor of a search on this node. Return the actor's handle.

    The actor reserves no CPU. If its process dies, Ray starts the actor again, and the actor reads its reports from
    ``path``.
    """
    return start_actor(SchedulerActor, str(path), dict(directions), config.model_dump(mode="json"))
