"""The queue between a process and the ranks of its worker group, without Ray: its methods as coroutines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.train.task_queue import BroadcastQueue, RankOutcome

DONE = RankOutcome()
FAILED = RankOutcome(error="RunError", message="rank 1 failed")


def is_waiting(task: asyncio.Task[Any]) -> bool:
    return not task.done()


async def let_others_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_every_rank_gets_the_same_task_and_all_must_report():
    async def scenario() -> None:
        queue = BroadcastQueue(2)
        ranks = [asyncio.ensure_future(queue.next(0)) for _ in range(2)]
        await let_others_run()
        assert all(is_waiting(rank) for rank in ranks)
        assert await queue.submit("a trial") == 1
        assert [await rank for rank in ranks] == [(1, "a trial")] * 2
        result = asyncio.ensure_future(queue.result(1))
        await queue.report(1, 1, FAILED)
        await let_others_run()
        assert is_waiting(result), "one rank may still be lost"
        await queue.report(1, 0, DONE)
        assert await result == DONE

    asyncio.run(scenario())


def test_a_rank_gets_a_task_once_and_a_rank_that_restarts_gets_it_again():
    async def scenario() -> None:
        queue = BroadcastQueue(2)
        await queue.submit("first")
        again = asyncio.ensure_future(queue.next(1))
        await let_others_run()
        assert is_waiting(again), "this rank has done the task"
        assert await queue.next(0) == (1, "first")
        for rank in (0, 1):
            await queue.report(1, rank, DONE)
        late = asyncio.ensure_future(queue.next(0))
        await let_others_run()
        assert is_waiting(late), "no rank gets a finished task"
        await queue.submit("second")
        assert await again == await late == (2, "second")

    asyncio.run(scenario())


def test_a_report_on_an_earlier_task_is_dropped():
    async def scenario() -> None:
        queue = BroadcastQueue(1)
        await queue.submit("first")
        forgotten = asyncio.ensure_future(queue.result(1))
        await let_others_run()
        await queue.submit("second")
        with pytest.raises(KeyError):
            await forgotten
        result = asyncio.ensure_future(queue.result(2))
        await queue.report(1, 0, FAILED)
        await let_others_run()
        assert is_waiting(result)
        await queue.report(2, 0, DONE)
        assert await result == DONE

    asyncio.run(scenario())


def test_closing_ends_every_wait_for_a_task():
    async def scenario() -> None:
        queue = BroadcastQueue(2)
        await queue.submit("never finished")
        waiting, closed = asyncio.ensure_future(queue.next(1)), asyncio.ensure_future(queue.wait_closed())
        await let_others_run()
        assert is_waiting(closed)
        await queue.close()
        assert await waiting is None
        assert await queue.next(0) is None
        await closed

    asyncio.run(scenario())


def test_events_are_taken_once_and_those_of_an_earlier_task_are_dropped():
    async def scenario() -> None:
        queue = BroadcastQueue(1)
        await queue.submit("first")
        await queue.emit(1, {"epoch": 1})
        await queue.emit(1, {"epoch": 2})
        assert await queue.take_events() == [{"epoch": 1}, {"epoch": 2}]
        assert await queue.take_events() == []
        await queue.emit(1, {"epoch": 3})
        await queue.report(1, 0, DONE)
        assert await queue.take_events() == [{"epoch": 3}], "the last events come with the outcome"
        await queue.submit("second")
        await queue.emit(1, {"epoch": 4})
        assert await queue.take_events() == []

    asyncio.run(scenario())
