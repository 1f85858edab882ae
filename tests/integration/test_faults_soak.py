"""A search of a hundred tiny trials. A process or a node is killed every few seconds."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml

from nodes import Nodes, Search, assert_nothing_lost, kill_all, start, wait_until
from ofmu.config.files import validate
from tune.config import SearchConfig
from tune.rundir.search_dir import RunDirectory
from tune.study.searcher import StudySearcher, open_study

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(3600)]

TRIALS = 100
PAUSE = (2.0, 5.0)
"""Seconds between two kills. There is at least one round between two kills."""


@pytest.fixture
def many(slow_search: dict[str, Any]) -> dict[str, Any]:
    """A hundred trials of three rounds each. Crashed trials restart without limit, since a trial may crash often."""
    return {
        **slow_search,
        "method": {**slow_search["method"], "outer_steps": 3, "pause": 0.1},
        "search": {**slow_search["search"], "num_trials": TRIALS},
        "cluster": {"max_failures": -1},
    }


def drawn(settings: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return the inner_lr that an undisturbed search gives to each trial. No trial runs."""
    config = validate(SearchConfig, settings)
    run = RunDirectory.create_new(folder)
    run.mkdir()
    searcher = StudySearcher(open_study(run.study_file, config), config, run.trial)
    handed_out = [searcher.suggest(str(number)) for number in range(TRIALS)]
    return {f"{trial['number']:05d}": trial["run"]["method"]["inner_lr"] for trial in handed_out}


def kill_something(nodes: Nodes, search: Search, chance: random.Random) -> str:
    """Kill the process that ran the last round, or a node with all its processes. Return which."""
    if chance.random() < 0.3:
        nodes.kill_raylet(chance.choice(nodes.workers))
        nodes.add()
        return "node"
    try:
        os.kill(search.last_process(), signal.SIGKILL)
    except ProcessLookupError:
        return "none"
    return "trial"


def test_a_soak(ray_folder: Path, many: dict[str, Any], tmp_path: Path, record_property: Any) -> None:
    chance = random.Random(20)
    nodes = Nodes(ray_folder, workers=2)
    started = time.monotonic()
    search = start(nodes, tmp_path / "run", many)
    kills: Counter[str] = Counter()
    try:
        while search.process.poll() is None:
            due, before = time.monotonic() + chance.uniform(*PAUSE), search.rounds().total()

            def ready(due: float = due, before: int = before) -> bool:
                over = search.process.poll() is not None
                return over or (time.monotonic() > due and search.rounds().total() > before)

            wait_until(ready, "a round between two kills", seconds=400)
            if search.process.poll() is None:
                kills[kill_something(nodes, search, chance)] += 1
        seconds = time.monotonic() - started
        search.wait()
    finally:
        kill_all([search])
        nodes.close()
    summary = {
        "seconds": round(seconds),
        **kills,
        "tried again": search.tries_again(),
        "repeated": search.repeated(),
        "rounds": search.rounds().total(),
    }
    record_property("soak", json.dumps(summary))
    print(summary)
    assert kills["trial"] >= 5
    assert kills["node"] >= 2
    table = pandas.read_csv(search.run_dir / "trials.csv")
    incomplete = table[table["state"] != "complete"]
    assert incomplete.empty, incomplete.dropna(axis=1, how="all").to_string()
    found = {
        path.parent.name: yaml.safe_load(path.read_text())["method"]["inner_lr"]
        for path in search.run_dir.glob("trials/*/config.yaml")
    }
    assert found == drawn(many, tmp_path / "drawn")
    assert_nothing_lost(search, TRIALS, repeats=kills.total())
