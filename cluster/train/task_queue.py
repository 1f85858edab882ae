"""The queue between a process that starts runs and the ranks of its worker group.

The queue's actor imports this module and no other of this project, so that its process stays small.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RankOutcome:
    """How one rank's part of a task ended. A complete run has the defaults."""

    pruned: bool = False
    """The round callback ended the run. The run's directory holds the pruning record."""
    error: str | None = None
    """Class name of the OfmuError that ended the run."""
    message: str = ""
    """Message of that error."""


class BroadcastQueue:
    """Gives every rank the same task. Returns rank 0's outcome once all ranks have reported.

    The class runs as a Ray actor; a waiting caller uses no CPU. Tasks are numbered from 1. The queue holds one task at
    a time. A rank that restarts in the middle of a task gets the task again.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._number = 0
        self._task: Any = None
        self._outcomes: dict[int, RankOutcome] = {}
        self._events: list[dict[str, Any]] = []
        self._closed = False
        self._changed = asyncio.Condition()

    async def submit(self, task: Any) -> int:
        """Replace the current task. Return the number of the new task."""
        async with self._changed:
            self._number += 1
            self._task, self._outcomes, self._events = task, {}, []
            self._changed.notify_all()
            return self._number

    async def next(self, after: int) -> tuple[int, Any] | None:
        """Wait for an unfinished task with a number above ``after``. Return its number and the task.

        Return None once the queue is closed.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or (self._is_unfinished and self._number > after))
            return None if self._closed else (self._number, self._task)

    async def report(self, number: int, rank: int, outcome: RankOutcome) -> None:
        """Store how ``rank`` ended the task. A report on an earlier task is dropped."""
        async with self._changed:
            if number == self._number:
                self._outcomes[rank] = outcome
                self._changed.notify_all()

    async def emit(self, number: int, event: dict[str, Any]) -> None:
        """Keep an event of the task until :meth:`take_events`. An event of an earlier task is dropped."""
        if number == self._number:
            self._events.append(event)

    async def take_events(self) -> list[dict[str, Any]]:
        """Return the events that were not taken yet, in their order."""
        taken, self._events = self._events, []
        return taken

    async def result(self, number: int) -> RankOutcome:
        """Wait until every rank has reported on the task. Return rank 0's outcome.

        Raises:
            KeyError: another task has replaced this task.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._number != number or not self._is_unfinished)
            if self._number != number:
                raise KeyError(number)
            return self._outcomes[0]

    async def close(self) -> None:
        """Make :meth:`next` return None, so that the ranks end after their current task."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def wait_closed(self) -> None:
        """Wait until the queue is closed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed)

    @property
    def _is_unfinished(self) -> bool:
        return self._number > 0 and len(self._outcomes) < self._world_size
