"""Ray Train around the trainer, on a real local Ray cluster with its dashboard process."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.config import ClusterConfig
from cluster.train.trainer import run_trial, train
from multirank import run_ranks
from ofmu.config.files import validate
from ofmu.errors import ClusterError, NonFiniteLossError, OfmuError, StorageError
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig, override
from ofmu.tasks.preparation import Prepared

COSTS = ("seconds", "peak_memory_bytes")


def changed(mapping: dict[str, Any], *overrides: str) -> UnlearnConfig:
    return validate(UnlearnConfig, override(mapping, overrides))


@pytest.fixture(scope="module")
def prepared(tiny_config: UnlearnConfig) -> Prepared:
    return prepare(tiny_config)


@pytest.fixture(scope="module")
def ray_cluster(ray_folder: Path) -> Iterator[Path]:
    import ray

    ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False, dashboard_port=0)
    yield ray_folder
    ray.shutdown()


def rows_of(history: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []


def damage_the_newest_checkpoint(trial: Path) -> bool:
    """Flip a bit in the middle of rank 1's shards; return whether that leaves an older checkpoint of all ranks."""
    whole = [
        path.parent
        for path in trial.glob("ray_train/train/checkpoint_*/rank_00000.json")
        if path.with_name("rank_00001.json").is_file()
    ]
    newest = max(whole, key=lambda path: len(json.loads((path / "rank_00000.json").read_text())["state"]["history"]))
    shards = bytearray((newest / "rank_00001.safetensors").read_bytes())
    shards[len(shards) // 2] ^= 1
    (newest / "rank_00001.safetensors").write_bytes(shards)
    return len(whole) > 1


def kill_a_worker_after(history: Path, steps: int, killed: list[int], ray_folder: Path) -> None:
    """SIGKILL the first train worker of this cluster once the run has noted ``steps`` outer steps."""
    deadline = time.monotonic() + 120
    while len(rows_of(history)) < steps and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in psutil.process_iter(["cmdline", "environ"]):
        title = (process.info["cmdline"] or [""])[0]
        ours = (process.info["environ"] or {}).get("RAY_TMPDIR") == str(ray_folder)
        if ours and title.startswith("ray::") and "RayTrainWorker" in title:
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)
            return


@pytest.mark.long
@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_a_killed_worker_and_a_damaged_checkpoint_cost_no_result(
    ray_cluster: Path, tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    """One of two ranks dies in mid-run: the run goes on from the checkpoint before the damaged one."""
    config = changed(tiny_mapping, "method.outer_steps=12", "engine.zero_stage=2")
    trial = tmp_path / "killed"
    killed: list[int] = []
    older: list[bool] = []

    def do_harm() -> None:
        kill_a_worker_after(trial / "history.jsonl", 5, killed, ray_cluster)
        older.append(damage_the_newest_checkpoint(trial))

    watcher = threading.Thread(target=do_harm)
    watcher.start()
    metrics = run_trial(config, ClusterConfig(num_workers=2, max_failures=1), trial, prepared)
    watcher.join()
    assert len(killed) == 1
    assert older == [True]

    script = tmp_path / "undisturbed.py"
    script.write_text(
        "import sys\nfrom ofmu import UnlearnConfig, unlearn\n"
        "unlearn(UnlearnConfig.model_validate_json(sys.argv[1]), sys.argv[2])\n"
    )
    run_ranks(script, 2, config.model_dump_json(), str(tmp_path / "whole"))
    expected = json.loads((tmp_path / "whole" / "metrics.json").read_text())["metrics"]
    assert metrics["outer_steps_taken"] == 12
    for name in set(expected) - set(COSTS):
        value = expected[name]
        assert metrics[name] == (value if value is None else pytest.approx(value, rel=1e-3)), name
    undisturbed = rows_of(tmp_path / "whole" / "history.jsonl")
    found = rows_of(trial / "history.jsonl")
    assert [row["outer_step"] for row in found] == list(range(1, 13))
    for row, wanted in zip(found, undisturbed, strict=True):
        for name in ("forget_loss", "retain_loss", "similarity", "phi_norm"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-3), name


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_a_diverging_group_is_not_retried(
    ray_cluster: Path, tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    config = changed(tiny_mapping, "method.inner_lr=1e30")
    with pytest.raises(NonFiniteLossError, match="Outer step 1 of 3 failed"):
        run_trial(config, ClusterConfig(num_workers=1, max_failures=5), tmp_path, prepared)


@pytest.mark.cluster
def test_more_workers_than_the_cluster_has_are_refused(
    ray_cluster: Path, tiny_config: UnlearnConfig, prepared: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match=r"needs 64 CPUs .* the Ray cluster has 2: lower cluster.num_workers"):
        run_trial(tiny_config, ClusterConfig(num_workers=64), tmp_path, prepared)


def test_local_mode_gives_the_trainers_numbers(tiny_config: UnlearnConfig, prepared: Prepared, tmp_path: Path) -> None:
    from ofmu import unlearn

    heard: list[dict[str, Any]] = []
    metrics = train(tiny_config, tmp_path / "ray", prepared=prepared, listener=heard.append)
    plain = unlearn(tiny_config, tmp_path / "plain", prepared=prepared).metrics
    assert len(heard) == 3
    assert {n: v for n, v in metrics.items() if n not in COSTS} == {n: v for n, v in plain.items() if n not in COSTS}


def test_a_users_error_passes_through_local_mode(
    tiny_mapping: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    config = changed(tiny_mapping, "method.inner_lr=1e30")
    with pytest.raises(OfmuError, match="a loss became nan"):
        run_trial(config, ClusterConfig(), tmp_path, prepared)


def test_a_directory_that_cannot_be_written_is_named(
    tiny_config: UnlearnConfig, prepared: Prepared, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match=r"Cannot write .*file/run"):
        run_trial(tiny_config, ClusterConfig(), blocked / "run", prepared)
