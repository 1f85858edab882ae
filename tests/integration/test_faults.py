"""Searches on a Ray cluster of several nodes that lose a process, a node, the driver or the head in mid-run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from nodes import Nodes, Search, assert_nothing_lost, end, start, wait_until

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(900)]

TRIALS = 6
ROUNDS = 12


@pytest.fixture(scope="module")
def settings(smallest_search: dict[str, Any]) -> dict[str, Any]:
    """Six trials of twelve slow, tiny rounds; random, so that no setting depends on the order of completion."""
    return {
        **smallest_search,
        "method": {
            "name": "paced",
            "module": "paced_method",
            "batch_size": 2,
            "inner_steps": 1,
            "outer_steps": ROUNDS,
            "pause": 0.2,
            "log": "unset",
        },
        "search": {
            "num_trials": TRIALS,
            "sampler": "random",
            "space": {"method.inner_lr": {"low": 0.01, "high": 0.1}},
        },
    }


@pytest.fixture(scope="module")
def nodes(ray_folder: Path) -> Iterator[Nodes]:
    """Two worker nodes; a test that kills one adds another."""
    found = Nodes(ray_folder, workers=2)
    yield found
    found.close()


Begin = Callable[..., Search]


@pytest.fixture
def begin(nodes: Nodes, settings: dict[str, Any], tmp_path: Path) -> Iterator[Begin]:
    """Return a function that starts a search with settings of its own; what still runs is killed at the end."""
    begun: list[Search] = []

    def begin(**changed: Any) -> Search:
        begun.append(start(nodes, tmp_path / "run", {**settings, **changed}))
        return begun[-1]

    yield begin
    end(begun)


@pytest.fixture(scope="module")
def undisturbed(nodes: Nodes, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the same search without any harm."""
    search = start(nodes, tmp_path_factory.mktemp("whole") / "run", settings)
    search.wait()
    assert search.states() == {"COMPLETE": TRIALS}
    assert search.repeated() == 0
    return search.run_dir


def test_a_killed_trial_process_costs_one_round(nodes: Nodes, begin: Begin, undisturbed: Path) -> None:
    search = begin()
    wait_until(lambda: search.at_work(4), "a trial in mid-run", alive=search)
    os.kill(search.last_process(), signal.SIGKILL)
    search.wait()
    assert_nothing_lost(search, undisturbed, TRIALS, repeats=1)


def test_a_killed_worker_node_costs_one_round(nodes: Nodes, begin: Begin, undisturbed: Path) -> None:
    search = begin()
    wait_until(lambda: len(search.at_work(4)) == 2, "both nodes at work", alive=search)
    nodes.kill_raylet(nodes.workers[0])
    nodes.add()
    search.wait()
    assert_nothing_lost(search, undisturbed, TRIALS, repeats=1)


def test_a_killed_driver_goes_on_where_it_was(nodes: Nodes, begin: Begin, undisturbed: Path) -> None:
    search = begin()
    wait_until(lambda: search.complete() >= 2 and search.at_work(4), "two complete trials", alive=search)
    search.kill()
    again = start(nodes, search.run_dir, None)
    again.wait()
    assert_nothing_lost(again, undisturbed, TRIALS, repeats=2)


def test_a_killed_head_is_survived_by_the_run_directory(
    ray_folder: Path, settings: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    """GCS, raylet and dashboard of the head die at once; the search is continued on a cluster that is new."""
    first = Nodes(ray_folder, workers=2)
    search = start(first, tmp_path / "run", settings)
    try:
        wait_until(lambda: search.complete() >= 1 and search.at_work(4), "a complete trial", alive=search)
        first.kill_head()
        assert search.process.wait(timeout=240) != 0
    finally:
        end([search])
        first.close()
    second = Nodes(ray_folder, workers=2)
    try:
        again = start(second, search.run_dir, None)
        again.wait()
        assert_nothing_lost(again, undisturbed, TRIALS, repeats=2)
    finally:
        second.close()
