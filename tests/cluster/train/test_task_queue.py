"""The mailbox between a trial process and its ranks, without Ray: its rules as coroutines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.train.task_queue import Mailbox


def is_waiting(task: asyncio.Task[Any]) -> bool:
    return not task.done()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_every_rank_takes_the_same_order_and_all_must_answer():
    async def scene() -> None:
        box = Mailbox(2)
        ranks = [asyncio.ensure_future(box.order(0)) for _ in range(2)]
        await settle()
        assert all(is_waiting(rank) for rank in ranks)
        assert await box.post("a trial") == 1
        assert [await rank for rank in ranks] == [(1, "a trial")] * 2
        outcome = asyncio.ensure_future(box.outcome(1))
        await box.answer(1, 1, "rank 1 says")
        await settle()
        assert is_waiting(outcome), "one rank may still be lost"
        await box.answer(1, 0, "rank 0 says")
        assert await outcome == "rank 0 says"

    asyncio.run(scene())


def test_an_order_is_taken_once_by_a_rank_and_again_by_one_that_starts_afresh():
    async def scene() -> None:
        box = Mailbox(2)
        await box.post("first")
        again = asyncio.ensure_future(box.order(1))
        await settle()
        assert is_waiting(again), "this rank has done it"
        assert await box.order(0) == (1, "first")
        for rank in (0, 1):
            await box.answer(1, rank, "done")
        late = asyncio.ensure_future(box.order(0))
        await settle()
        assert is_waiting(late), "an answered order is given to nobody"
        await box.post("second")
        assert await again == await late == (2, "second")

    asyncio.run(scene())


def test_an_answer_to_an_earlier_order_is_dropped():
    async def scene() -> None:
        box = Mailbox(1)
        await box.post("first")
        forgotten = asyncio.ensure_future(box.outcome(1))
        await settle()
        await box.post("second")
        with pytest.raises(KeyError):
            await forgotten
        outcome = asyncio.ensure_future(box.outcome(2))
        await box.answer(1, 0, "late")
        await settle()
        assert is_waiting(outcome)
        await box.answer(2, 0, "in time")
        assert await outcome == "in time"

    asyncio.run(scene())


def test_closing_sends_everyone_home():
    async def scene() -> None:
        box = Mailbox(2)
        await box.post("never answered")
        waiting = asyncio.ensure_future(box.order(1))
        await settle()
        await box.close()
        assert await waiting is None
        assert await box.order(0) is None

    asyncio.run(scene())
