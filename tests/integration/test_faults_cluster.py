"""Searches on clusters that change under them: the head is lost, a node joins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodes import TRIALS, Nodes, assert_nothing_lost, end, start, wait_until

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(1200)]


def test_a_killed_head_is_survived_by_the_run_directory(
    ray_folder: Path, paced_search: dict[str, Any], tmp_path: Path
) -> None:
    """GCS, raylet and dashboard of the head die at once; the search is continued on a cluster that is new."""
    first = Nodes(ray_folder, workers=2)
    search = start(first, tmp_path / "run", paced_search)
    try:
        wait_until(lambda: search.complete() >= 1 and search.at_work(4), "a complete trial", alive=search)
        first.kill_head()
        assert search.process.wait(timeout=240) == 1
        said = search.output().strip().splitlines()
        assert len(said) == 1, said
        assert "Error: The head of the Ray cluster at" in said[0]
        assert f"--resume {search.run_dir}" in said[0]
    finally:
        end([search])
        first.close()
    second = Nodes(ray_folder, workers=2)
    try:
        again = start(second, search.run_dir, None)
        again.wait()
        assert_nothing_lost(again, TRIALS, repeats=2)
    finally:
        second.close()


def test_a_node_that_joins_is_used(ray_folder: Path, paced_search: dict[str, Any], tmp_path: Path) -> None:
    # enough trials for a second process to start its imports and still find some
    many = {**paced_search, "search": {**paced_search["search"], "num_trials": 24}}
    alone = Nodes(ray_folder, workers=1)
    search = start(alone, tmp_path / "run", many)
    try:
        wait_until(lambda: search.complete() >= 1 and search.at_work(1), "a trial after the first", alive=search)
        assert search.states()["RUNNING"] == 1
        alone.add()
        wait_until(lambda: len(search.at_work(1)) == 2, "two trials at once", alive=search)
        search.wait()
        assert_nothing_lost(search, 24, repeats=0)
    finally:
        end([search])
        alone.close()
