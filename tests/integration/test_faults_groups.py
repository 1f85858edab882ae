"""Searches whose trials are groups of two ranks on two nodes. A rank or a node is killed in mid-run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodes import Nodes, assert_nothing_lost, kill_all, start, wait_until

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def nodes(ray_folder: Path) -> Iterator[Nodes]:
    """Two worker nodes, one for each rank."""
    found = Nodes(ray_folder, workers=2, dashboard=True)
    yield found
    found.close()


@pytest.fixture
def grouped(slow_search: dict[str, Any]) -> dict[str, Any]:
    """Three trials of two ranks each, one after the other."""
    return {**slow_search, "cluster": {"num_workers": 2}, "search": {**slow_search["search"], "num_trials": 3}}


def test_a_killed_rank_costs_one_round(nodes: Nodes, grouped: dict[str, Any], tmp_path: Path) -> None:
    search = start(nodes, tmp_path / "run", grouped)
    try:
        wait_until(lambda: search.at_work(4), "a trial in mid-run", alive=search)
        os.kill(search.last_process(), signal.SIGKILL)
        search.wait(600)
        assert_nothing_lost(search, 3, repeats=1, ranks=2)
    finally:
        kill_all([search])


def test_a_killed_node_of_a_group_is_waited_for(nodes: Nodes, grouped: dict[str, Any], tmp_path: Path) -> None:
    """No group fits on the one remaining node. The trial does not fail, and continues once another node joins."""
    search = start(nodes, tmp_path / "run", grouped)
    try:
        wait_until(lambda: search.at_work(4), "a trial in mid-run", alive=search)
        pair = nodes.actors("RayTrainWorker")
        nodes.kill_raylet(nodes.workers[0])
        wait_until(lambda: not set(pair) & set(nodes.actors("RayTrainWorker")), "the group's end", alive=search)
        nodes.add()
        search.wait(600)
        assert_nothing_lost(search, 3, repeats=1, ranks=2)
    finally:
        kill_all([search])
