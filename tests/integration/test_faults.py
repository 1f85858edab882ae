"""Searches on a Ray cluster of several nodes that lose a process, a node, the driver or the head in mid-run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodes import TRIALS, Nodes, Search, assert_nothing_lost, end, has_ended, start, wait_until

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nodes(ray_folder: Path) -> Iterator[Nodes]:
    """Two worker nodes; a test that kills one adds another."""
    found = Nodes(ray_folder, workers=2)
    yield found
    found.close()


Begin = Callable[..., Search]


@pytest.fixture
def begin(nodes: Nodes, paced_search: dict[str, Any], tmp_path: Path) -> Iterator[Begin]:
    """Return a function that starts a search with settings of its own; what still runs is killed at the end."""
    begun: list[Search] = []

    def begin(**changed: Any) -> Search:
        begun.append(start(nodes, tmp_path / "run", {**paced_search, **changed}))
        return begun[-1]

    yield begin
    end(begun)


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


def test_a_killed_driver_goes_on_where_it_was(nodes: Nodes, begin: Begin) -> None:
    search = begin()
    wait_until(lambda: search.complete() >= 2 and search.at_work(4), "two complete trials", alive=search)
    search.kill()
    again = start(nodes, search.run_dir, None)
    again.wait()
    assert_nothing_lost(again, TRIALS, repeats=2)


def test_a_drained_node_hands_its_trial_on(nodes: Nodes, begin: Begin) -> None:
    """The notice of a preemption, and the node's end when its time is up, cost no more than a round."""
    search = begin()
    wait_until(lambda: len(search.at_work(2)) == 2, "both nodes at work", alive=search)
    leaving = nodes.workers[0]
    nodes.drain(leaving, seconds=1)
    wait_until(lambda: has_ended(leaving), "the drained node's end", seconds=60, alive=search)
    search.wait()
    nodes.workers.remove(leaving)
    nodes.add()
    assert_nothing_lost(search, TRIALS, repeats=1)
