"""Searches on a Ray cluster of several nodes. A process, a node or the driver is killed in mid-run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodes import TRIALS, Nodes, Search, assert_nothing_lost, has_ended, kill_all, start, wait_until

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nodes(ray_folder: Path) -> Iterator[Nodes]:
    """Two worker nodes. A test that kills one adds another."""
    found = Nodes(ray_folder, workers=2)
    yield found
    found.close()


Begin = Callable[..., Search]


@pytest.fixture
def begin(nodes: Nodes, slow_search: dict[str, Any], tmp_path: Path) -> Iterator[Begin]:
    """Return a function that starts a search with changed settings. Searches that still run are killed at the end."""
    begun: list[Search] = []

    def begin(**changed: Any) -> Search:
        begun.append(start(nodes, tmp_path / "run", {**slow_search, **changed}))
        return begun[-1]

    yield begin
    kill_all(begun)


def test_a_killed_trial_process_costs_one_round(nodes: Nodes, begin: Begin) -> None:
    search = begin()
    wait_until(lambda: search.at_work(4), "a trial in mid-run", alive=search)
    os.kill(search.last_process(), signal.SIGKILL)
    search.wait()
    assert_nothing_lost(search, TRIALS, repeats=1)
    assert search.tries_again() == 1


def test_a_killed_worker_node_costs_one_round(nodes: Nodes, begin: Begin) -> None:
    search = begin()
    wait_until(lambda: len(search.at_work(4)) == 2, "both nodes at work", alive=search)
    nodes.kill_raylet(nodes.workers[0])
    nodes.add()
    search.wait()
    assert_nothing_lost(search, TRIALS, repeats=1)


def test_a_resume_continues_after_a_killed_driver(nodes: Nodes, begin: Begin) -> None:
    search = begin()
    wait_until(lambda: search.complete() >= 2 and search.at_work(4), "two complete trials", alive=search)
    search.kill()
    again = start(nodes, search.run_dir, None)
    again.wait()
    assert_nothing_lost(again, TRIALS, repeats=2)


def test_the_trial_of_a_drained_node_continues_on_another(nodes: Nodes, begin: Begin) -> None:
    """The notice of a preemption and the end of the node cost at most one round."""
    search = begin()
    wait_until(lambda: len(search.at_work(2)) == 2, "both nodes at work", alive=search)
    leaving = nodes.workers[0]
    nodes.drain(leaving, seconds=1)
    wait_until(lambda: has_ended(leaving), "the drained node's end", seconds=60, alive=search)
    search.wait()
    nodes.workers.remove(leaving)
    nodes.add()
    assert_nothing_lost(search, TRIALS, repeats=1)
