"""What a trial process and the ranks of its worker group have between them: one order at a time, an answer per rank.

The process that holds it imports this module alone, so it stays small.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Mailbox:
    """Hands every rank the same order, and its poster the outcome once all ranks have answered.

    To be run as a Ray actor; who waits costs nothing. Orders are numbered from 1. A rank that starts afresh in the
    middle of an order gets that order again.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._number = 0
        self._order: Any = None
        self._answers: dict[int, Any] = {}
        self._closed = False
        self._changed = asyncio.Condition()

    async def post(self, order: Any) -> int:
        """Lay down the next order, in place of the one before; return its number."""
        async with self._changed:
            self._number += 1
            self._order, self._answers = order, {}
            self._changed.notify_all()
            return self._number

    async def order(self, after: int) -> tuple[int, Any] | None:
        """Wait for an order later than ``after`` that not all ranks have answered; None: there will be no more."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or (self._is_open and self._number > after))
            return None if self._closed else (self._number, self._order)

    async def answer(self, number: int, rank: int, outcome: Any) -> None:
        """Take down how ``rank`` ended the order; an answer to an earlier order is dropped."""
        async with self._changed:
            if number == self._number:
                self._answers[rank] = outcome
                self._changed.notify_all()

    async def outcome(self, number: int) -> Any:
        """Wait until every rank has answered the order, and return what rank 0 said.

        Raises:
            KeyError: another order has taken its place.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._number != number or not self._is_open)
            if self._number != number:
                raise KeyError(number)
            return self._answers[0]

    async def close(self) -> None:
        """Send the ranks home as soon as they ask for the next order."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def _is_open(self) -> bool:
        return self._number > 0 and len(self._answers) < self._world_size
