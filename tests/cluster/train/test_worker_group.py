"""Warm worker groups on a real local Ray cluster: every warm trial must equal a cold one bit for bit."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.config import ClusterConfig
from cluster.train.worker_group import WarmTrials
from multirank import run_ranks
from ofmu.config.files import validate
from ofmu.errors import NonFiniteLossError, RunError
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig, override
from ofmu.tasks.preparation import Prepared

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

COSTS = ("seconds", "peak_memory_bytes")
TWO = ClusterConfig(num_workers=2, max_failures=1)
COLD = """
import sys
from ofmu import UnlearnConfig, unlearn
unlearn(UnlearnConfig.model_validate_json(sys.argv[1]), sys.argv[2])
"""


def changed(mapping: dict[str, Any], *overrides: str) -> UnlearnConfig:
    return validate(UnlearnConfig, override(mapping, overrides))


@pytest.fixture(scope="module")
def prepared(tiny_config: UnlearnConfig) -> Prepared:
    return prepare(tiny_config)


@pytest.fixture(scope="module")
def warm(ray_folder: Path) -> Iterator[WarmTrials]:
    import ray

    ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False, dashboard_port=0)
    trials = WarmTrials()
    yield trials
    trials.close()
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    free = ray.available_resources().get("CPU")
    ray.shutdown()
    assert free == 2


@pytest.fixture(scope="module")
def cold(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Return a function from the ZeRO stage to a run of two fresh processes without Ray, made once."""
    folder = tmp_path_factory.mktemp("cold")
    (folder / "cold.py").write_text(COLD)

    def run(stage: int) -> Path:
        place = folder / str(stage)
        if not place.exists():
            run_ranks(folder / "cold.py", 2, measured(tiny_mapping, stage).model_dump_json(), str(place))
        return place

    return run


def measured(mapping: dict[str, Any], stage: int) -> UnlearnConfig:
    """The run that is compared; steps enough to be killed in between."""
    return changed(mapping, f"engine.zero_stage={stage}", "method.outer_steps=6", "method.seed=3")


def other(mapping: dict[str, Any], stage: int) -> UnlearnConfig:
    """A run whose traces in its processes must not be seen in the next one."""
    lines = [f"engine.zero_stage={stage}", "method.outer_steps=2", "method.outer_lr=5e-3", "method.seed=8"]
    return changed(mapping, *lines)


def rows_of(history: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []


def assert_equal_runs(found: Path, wanted: Path) -> None:
    def left(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name not in COSTS}

    metrics = [json.loads((run / "metrics.json").read_text())["metrics"] for run in (found, wanted)]
    assert left(metrics[0]) == left(metrics[1])
    histories = [[left(row) for row in rows_of(run / "history.jsonl")] for run in (found, wanted)]
    assert histories[0] == histories[1] != []
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (found, wanted)]
    assert weights[0] == weights[1]


def workers(ray_folder: Path) -> set[int]:
    """Return the process ids of the train workers of this test's cluster."""
    found = set()
    for process in psutil.process_iter(["cmdline", "environ"]):
        title = (process.info["cmdline"] or [""])[0]
        ours = (process.info["environ"] or {}).get("RAY_TMPDIR") == str(ray_folder)
        if ours and title.startswith("ray::") and "RayTrainWorker" in title:
            found.add(process.pid)
    return found


@pytest.mark.parametrize("stage", [3, pytest.param(2, marks=pytest.mark.long)])
def test_a_warm_trial_equals_a_cold_one(stage, warm, cold, ray_folder, tiny_mapping, prepared, tmp_path):
    before = workers(ray_folder)
    warm(other(tiny_mapping, stage), TWO, tmp_path / "first", prepared)
    pair = workers(ray_folder)
    assert len(pair) == 2
    assert not pair & before, "another stage takes a cold group"
    warm(measured(tiny_mapping, stage), TWO, tmp_path / "second", prepared)
    assert workers(ray_folder) == pair
    assert_equal_runs(tmp_path / "second", cold(stage))


def test_a_failed_trial_leaves_the_group_warm(warm, cold, ray_folder, tiny_mapping, prepared, tmp_path):
    warm(other(tiny_mapping, 2), TWO, tmp_path / "first", prepared)
    pair = workers(ray_folder)
    diverging = changed(tiny_mapping, "engine.zero_stage=2", "method.inner_lr=1e30")
    with pytest.raises(NonFiniteLossError, match="Outer step 1 of 3 failed"):
        warm(diverging, TWO, tmp_path / "diverged", prepared)
    warm(measured(tiny_mapping, 2), TWO, tmp_path / "after", prepared)
    assert workers(ray_folder) == pair
    assert_equal_runs(tmp_path / "after", cold(2))


@contextmanager
def one_killed(pair: set[int], trial: Path) -> Iterator[None]:
    """SIGKILL one of the workers once the trial has noted three outer steps."""

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while len(rows_of(trial / "history.jsonl")) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(min(pair), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    yield
    killer.join()


@pytest.mark.long
def test_a_killed_worker_costs_one_restart(warm, cold, ray_folder, tiny_mapping, prepared, tmp_path):
    warm(other(tiny_mapping, 2), TWO, tmp_path / "first", prepared)
    pair = workers(ray_folder)
    with one_killed(pair, tmp_path / "second"):
        warm(measured(tiny_mapping, 2), TWO, tmp_path / "second", prepared)
    restarted = workers(ray_folder)
    assert len(restarted) == 2
    assert not restarted & pair
    warm(measured(tiny_mapping, 2), TWO, tmp_path / "third", prepared)
    assert workers(ray_folder) == restarted
    for name in ("second", "third"):
        assert_equal_runs(tmp_path / name, cold(2))


def test_a_trial_that_crashes_too_often_fails(warm, ray_folder, tiny_mapping, prepared, tmp_path):
    warm(other(tiny_mapping, 2), TWO, tmp_path / "first", prepared)
    never = TWO.model_copy(update={"max_failures": 0})
    with (
        one_killed(workers(ray_folder), tmp_path / "second"),
        pytest.raises(RunError, match="The worker group crashed 1 time on this trial"),
    ):
        warm(measured(tiny_mapping, 2), never, tmp_path / "second", prepared)
    assert not workers(ray_folder)
