"""Worker groups on a real local Ray cluster: a run in a used group must equal a run in new processes bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterConfig
from cluster.train.worker_group import WorkerGroupPool
from group_runs import history_of, in_mid_run, kill_a_worker, wait_for_free_cpus, worker_processes
from ofmu.config.files import validate
from ofmu.errors import NonFiniteLossError, RunError
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig, override
from ofmu.tasks.preparation import Prepared
from ofmu.testing import run_script_on_ranks

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

COSTS = ("seconds", "peak_memory_bytes")
TWO = ClusterConfig(num_workers=2, max_failures=1)
NEW_PROCESSES = """
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
def pool(two_cpus_with_dashboard: None) -> Iterator[WorkerGroupPool]:
    pool = WorkerGroupPool()
    yield pool
    pool.close()
    wait_for_free_cpus(2)


@pytest.fixture(scope="module")
def in_new_processes(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Return a function from the ZeRO stage to a run of two new processes without Ray. Each run is made once."""
    folder = tmp_path_factory.mktemp("new")
    (folder / "run.py").write_text(NEW_PROCESSES)

    def run(stage: int) -> Path:
        directory = folder / str(stage)
        if not directory.exists():
            run_script_on_ranks(folder / "run.py", 2, measured(tiny_mapping, stage).model_dump_json(), str(directory))
        return directory

    return run


def measured(mapping: dict[str, Any], stage: int) -> UnlearnConfig:
    """Return the run that is compared. It has enough steps to be killed in mid-run."""
    return changed(mapping, f"engine.zero_stage={stage}", "method.outer_steps=6", "method.seed=3")


def other(mapping: dict[str, Any], stage: int) -> UnlearnConfig:
    """Return a run that must leave no trace in its processes for the next run."""
    lines = [f"engine.zero_stage={stage}", "method.outer_steps=2", "method.outer_lr=5e-3", "method.seed=8"]
    return changed(mapping, *lines)


def assert_equal_runs(found: Path, wanted: Path) -> None:
    def without_costs(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name not in COSTS}

    metrics = [json.loads((run / "metrics.json").read_text())["metrics"] for run in (found, wanted)]
    assert without_costs(metrics[0]) == without_costs(metrics[1])
    histories = [[without_costs(row) for row in history_of(run)] for run in (found, wanted)]
    assert histories[0] == histories[1] != []
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (found, wanted)]
    assert weights[0] == weights[1]


@pytest.mark.long  # The next test compares runs in a used group too.
@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_in_a_used_group_equals_one_in_new_processes(
    stage, pool, in_new_processes, ray_folder, tiny_mapping, prepared, tmp_path
):
    before = worker_processes(ray_folder)
    pool(other(tiny_mapping, stage), TWO, tmp_path / "first", prepared)
    pair = worker_processes(ray_folder)
    assert len(pair) == 2
    assert not pair & before, "another stage starts a new group"
    pool(measured(tiny_mapping, stage), TWO, tmp_path / "second", prepared)
    assert worker_processes(ray_folder) == pair
    assert_equal_runs(tmp_path / "second", in_new_processes(stage))


@pytest.mark.long
def test_a_failed_run_does_not_end_the_group(pool, in_new_processes, ray_folder, tiny_mapping, prepared, tmp_path):
    pool(other(tiny_mapping, 2), TWO, tmp_path / "first", prepared)
    pair = worker_processes(ray_folder)
    diverging = changed(tiny_mapping, "engine.zero_stage=2", "method.inner_lr=1e30")
    with pytest.raises(NonFiniteLossError, match="Outer step 1 of 3 failed"):
        pool(diverging, TWO, tmp_path / "diverged", prepared)
    pool(measured(tiny_mapping, 2), TWO, tmp_path / "after", prepared)
    assert worker_processes(ray_folder) == pair
    assert_equal_runs(tmp_path / "after", in_new_processes(2))


@pytest.mark.long
def test_a_killed_worker_costs_one_restart(pool, in_new_processes, ray_folder, tiny_mapping, prepared, tmp_path):
    pool(other(tiny_mapping, 2), TWO, tmp_path / "first", prepared)
    pair = worker_processes(ray_folder)
    with in_mid_run(tmp_path / "second", 3, lambda: kill_a_worker(ray_folder)) as killed:
        pool(measured(tiny_mapping, 2), TWO, tmp_path / "second", prepared)
    assert len(killed) == 1
    assert set(killed) <= pair
    restarted = worker_processes(ray_folder)
    assert len(restarted) == 2
    assert not restarted & pair
    pool(measured(tiny_mapping, 2), TWO, tmp_path / "third", prepared)
    assert worker_processes(ray_folder) == restarted
    for name in ("second", "third"):
        assert_equal_runs(tmp_path / name, in_new_processes(2))


def test_a_run_that_crashes_too_often_fails(pool, ray_folder, tiny_mapping, prepared, tmp_path):
    pool(other(tiny_mapping, 2), TWO, tmp_path / "first", prepared)
    never = TWO.model_copy(update={"max_failures": 0})
    with (
        in_mid_run(tmp_path / "second", 3, lambda: kill_a_worker(ray_folder)),
        pytest.raises(RunError, match="The worker group crashed 1 time on this run"),
    ):
        pool(measured(tiny_mapping, 2), never, tmp_path / "second", prepared)
    assert not worker_processes(ray_folder)
