"""Searches on clusters that change during the search: the head is killed, or a node joins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodes import TRIALS, Nodes, assert_nothing_lost, kill_all, start, wait_until

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(1200)]


def test_a_search_whose_head_was_killed_is_resumed_on_a_new_cluster(
    ray_folder: Path, slow_search: dict[str, Any], tmp_path: Path
) -> None:
    """GCS, raylet and dashboard of the head die at once. The search is resumed on a new cluster."""
    first = Nodes(ray_folder, workers=2)
    search = start(first, tmp_path / "run", slow_search)
    try:
        wait_until(lambda: search.complete() >= 1 and search.at_work(4), "a complete trial", alive=search)
        first.kill_head()
        assert search.process.wait(timeout=240) == 1
        output = search.output()
        assert "Traceback" not in output
        last = output.strip().splitlines()[-1]
        assert "Error: The head of the Ray cluster at" in last
        assert f"--resume {search.run_dir}" in last
    finally:
        kill_all([search])
        first.close()
    second = Nodes(ray_folder, workers=2)
    try:
        again = start(second, search.run_dir, None)
        again.wait()
        assert_nothing_lost(again, TRIALS, repeats=2)
    finally:
        second.close()


def test_a_node_that_joins_is_used(ray_folder: Path, slow_search: dict[str, Any], tmp_path: Path) -> None:
    # Enough trials that some remain when the second process has finished its imports.
    many = {**slow_search, "search": {**slow_search["search"], "num_trials": 24}}
    cluster = Nodes(ray_folder, workers=1)
    search = start(cluster, tmp_path / "run", many)
    try:
        wait_until(lambda: search.complete() >= 1 and search.at_work(1), "a trial after the first", alive=search)
        assert search.states()["RUNNING"] == 1
        cluster.add()
        wait_until(lambda: len(search.at_work(1)) == 2, "two trials at once", alive=search)
        search.wait()
        assert_nothing_lost(search, 24, repeats=0)
    finally:
        kill_all([search])
        cluster.close()
