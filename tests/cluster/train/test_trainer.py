"""One run in this process, or in a worker group on a real local Ray cluster with its dashboard process."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.config import ClusterConfig
from cluster.train.trainer import run_trial, train
from cluster.train.worker_group import WorkerGroup, WorkerGroupPool
from group_runs import history_of, in_mid_run, kill_a_worker, wait_for_free_cpus, worker_processes
from ofmu import unlearn
from ofmu.config.files import validate
from ofmu.errors import ClusterError, NonFiniteLossError, OfmuError, RunError, StorageError
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig, override
from ofmu.tasks.preparation import Prepared
from ofmu.testing import run_script_on_ranks

COSTS = ("seconds", "peak_memory_bytes")


def changed(mapping: dict[str, Any], *overrides: str) -> UnlearnConfig:
    return validate(UnlearnConfig, override(mapping, overrides))


@pytest.fixture(scope="module")
def prepared(tiny_config: UnlearnConfig) -> Prepared:
    return prepare(tiny_config)


@pytest.fixture(scope="module")
def ray_cluster(ray_folder: Path, two_cpus_with_dashboard: None) -> Path:
    return ray_folder


@pytest.fixture
def groups_started(monkeypatch: pytest.MonkeyPatch) -> list[WorkerGroup]:
    """The worker groups that the test has started."""
    started: list[WorkerGroup] = []
    start = WorkerGroup.__init__

    def record(group: WorkerGroup, *arguments: Any) -> None:
        started.append(group)
        start(group, *arguments)

    monkeypatch.setattr(WorkerGroup, "__init__", record)
    return started


def damage_the_newest_checkpoint(trial: Path) -> bool:
    """Flip a bit in the middle of rank 1's shards; return whether that leaves an older checkpoint of all ranks."""
    complete = [
        path.parent
        for path in trial.glob("checkpoints/step_*/rank_00000.json")
        if path.with_name("rank_00001.json").is_file()
    ]
    newest = max(complete, key=lambda path: len(json.loads((path / "rank_00000.json").read_text())["state"]["history"]))
    shards = bytearray((newest / "rank_00001.safetensors").read_bytes())
    shards[len(shards) // 2] ^= 1
    (newest / "rank_00001.safetensors").write_bytes(shards)
    return len(complete) > 1


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_a_killed_worker_and_a_damaged_checkpoint_cost_no_result(
    ray_cluster: Path,
    tiny_mapping: dict[str, Any],
    prepared: Prepared,
    groups_started: list[WorkerGroup],
    tmp_path: Path,
) -> None:
    """One of two ranks dies in mid-run: the run continues from the checkpoint before the damaged one."""
    config = changed(tiny_mapping, "method.outer_steps=12", "engine.zero_stage=2")
    trial = tmp_path / "killed"

    def do_harm() -> bool:
        kill_a_worker(ray_cluster)
        return damage_the_newest_checkpoint(trial)

    with in_mid_run(trial, 5, do_harm) as left_an_older_checkpoint:
        metrics = run_trial(config, ClusterConfig(num_workers=2, max_failures=1), trial, prepared)
    assert left_an_older_checkpoint == [True]
    assert len(groups_started) == 2

    script = tmp_path / "undisturbed.py"
    script.write_text(
        "import sys\nfrom ofmu import UnlearnConfig, unlearn\n"
        "unlearn(UnlearnConfig.model_validate_json(sys.argv[1]), sys.argv[2])\n"
    )
    run_script_on_ranks(script, 2, config.model_dump_json(), str(tmp_path / "whole"))
    expected = json.loads((tmp_path / "whole" / "metrics.json").read_text())["metrics"]
    assert metrics["outer_steps_taken"] == 12
    for name in set(expected) - set(COSTS):
        value = expected[name]
        assert metrics[name] == (value if value is None else pytest.approx(value, rel=1e-3)), name
    found, undisturbed = history_of(trial), history_of(tmp_path / "whole")
    assert [row["outer_step"] for row in found] == list(range(1, 13))
    for row, wanted in zip(found, undisturbed, strict=True):
        for name in ("forget_loss", "retain_loss", "similarity", "phi_norm"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-3), name


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_a_killed_worker_ends_a_run_without_restarts_and_the_next_call_continues_it(
    ray_cluster: Path,
    tiny_mapping: dict[str, Any],
    prepared: Prepared,
    groups_started: list[WorkerGroup],
    tmp_path: Path,
) -> None:
    config = changed(tiny_mapping, "method.outer_steps=6")
    cluster = ClusterConfig(num_workers=1, max_failures=0)
    with (
        in_mid_run(tmp_path / "run", 3, lambda: kill_a_worker(ray_cluster)),
        pytest.raises(RunError, match="The worker group crashed 1 time on this run"),
    ):
        run_trial(config, cluster, tmp_path / "run", prepared)
    assert len(groups_started) == 1
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*")]
    assert len(kept) >= 2, "the newest checkpoint and the one before"
    before = history_of(tmp_path / "run")

    assert run_trial(config, cluster, tmp_path / "run", prepared)["outer_steps_taken"] == 6
    after = history_of(tmp_path / "run")
    restored = int(max(kept).removeprefix("step_"))
    assert restored >= 2
    assert after[:restored] == before[:restored], "these rounds were not run again"
    assert [row["outer_step"] for row in after] == list(range(1, 7))


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_a_diverging_group_is_not_retried(
    ray_cluster: Path,
    tiny_mapping: dict[str, Any],
    prepared: Prepared,
    groups_started: list[WorkerGroup],
    tmp_path: Path,
) -> None:
    config = changed(tiny_mapping, "method.inner_lr=1e30")
    with pytest.raises(NonFiniteLossError, match="Outer step 1 of 3 failed"):
        run_trial(config, ClusterConfig(num_workers=1, max_failures=5), tmp_path, prepared)
    assert len(groups_started) == 1


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_ctrl_c_ends_the_ranks_in_mid_run(
    ray_cluster: Path, tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    """The ranks would otherwise hold their CPUs until the end of their run: Ray stays, as in a notebook."""
    config = changed(tiny_mapping, "method.outer_steps=2000")
    with (
        in_mid_run(tmp_path / "run", 2, lambda: os.kill(os.getpid(), signal.SIGINT)),
        pytest.raises(KeyboardInterrupt),
    ):
        run_trial(config, ClusterConfig(num_workers=2), tmp_path / "run", prepared)
    wait_for_free_cpus(2)
    assert not worker_processes(ray_cluster)
    assert len(history_of(tmp_path / "run")) < 2000


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_a_run_in_a_group_frees_the_cluster_and_leaves_nothing_of_rays(
    ray_cluster: Path, tiny_config: UnlearnConfig, tmp_path: Path
) -> None:
    metrics = train(tiny_config, tmp_path / "run", ClusterConfig(num_workers=1))
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    wait_for_free_cpus(2)
    files = {"config.yaml", "content.json", "environment.json", "history.jsonl", "metrics.json", "scores.json"}
    expected = files | {"model"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == expected
    assert ray.is_initialized(), "the caller's Ray is left running"


@pytest.mark.cluster
def test_more_workers_than_the_cluster_has_are_refused(
    ray_cluster: Path, tiny_config: UnlearnConfig, prepared: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match=r"needs 64 CPUs .* the Ray cluster has 2: lower cluster.num_workers"):
        run_trial(tiny_config, ClusterConfig(num_workers=64), tmp_path, prepared)


@pytest.mark.slow
def test_local_mode_gives_the_trainers_numbers(tiny_config: UnlearnConfig, prepared: Prepared, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    metrics = train(tiny_config, tmp_path / "ray", prepared=prepared, callback=records.append)
    plain = unlearn(tiny_config, tmp_path / "plain", prepared=prepared).metrics
    assert len(records) == 3
    assert {n: v for n, v in metrics.items() if n not in COSTS} == {n: v for n, v in plain.items() if n not in COSTS}


@pytest.mark.slow
def test_a_users_error_passes_through_local_mode(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    config = changed(tiny_mapping, "method.inner_lr=1e30")
    with pytest.raises(OfmuError, match="a loss became nan"):
        run_trial(config, ClusterConfig(), tmp_path, prepared)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.cluster)])
def test_a_directory_that_cannot_be_written_is_named(
    tiny_config: UnlearnConfig, prepared: Prepared, tmp_path: Path, workers: int, request: pytest.FixtureRequest
) -> None:
    if workers:
        request.getfixturevalue("ray_cluster")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match=r"Cannot write .*file/run"):
        run_trial(tiny_config, ClusterConfig(num_workers=workers), blocked / "run", prepared)


def test_a_pool_without_workers_is_refused(tiny_config: UnlearnConfig, prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_workers of at least 1"):
        WorkerGroupPool()(tiny_config, ClusterConfig(num_workers=0), tmp_path, prepared)
