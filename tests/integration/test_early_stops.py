"""Many early stops in a row, in one worker group: the group stays, and in the end all that it held is free."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.config import ClusterConfig
from cluster.train.worker_group import WorkerGroupPool
from ofmu.errors import PrunedError
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig
from tune.early_stopping.config import EarlyStoppingConfig
from tune.early_stopping.service import Judging, SchedulerClient, start_scheduler_actor
from tune.space.objectives import Direction

STOPS = 20
WAYS: dict[str, Direction] = {"ks_statistic": "min", "model_utility": "max"}
UNBEATEN = {"ks_statistic": 0.0, "model_utility": 1.0}


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.timeout(600)
def test_twenty_early_stops_leave_no_resource_behind(
    ray_folder: Path, tiny_mapping: dict[str, Any], tmp_path: Path
) -> None:
    config = UnlearnConfig.model_validate(tiny_mapping)
    settings = EarlyStoppingConfig(enabled=True, rung_size=2, grace_rounds=1, first_rung=0.25, rows=2)
    prepared = prepare(config)
    ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False, dashboard_port=0)
    try:
        office = start_scheduler_actor(tmp_path / "rungs.jsonl", WAYS, settings)
        # so many that the stopped ones, who tie, never come into the better half
        for trial in range(100, 100 + 2 * STOPS):
            assert not ray.get(office.answer.remote(trial, 1, 3, UNBEATEN))
        judging = Judging(settings, tuple(WAYS), SchedulerClient(office))
        pool, groups = WorkerGroupPool(), set()
        for number in range(STOPS):
            with pytest.raises(PrunedError):
                pool(
                    config,
                    ClusterConfig(num_workers=2),
                    tmp_path / str(number),
                    prepared,
                    round_callback=judging.of(number),
                )
            assert pool._group is not None
            groups.add(id(pool._group))
        assert len(groups) == 1, "a trial that is stopped must not cost its group"
        assert ray.available_resources().get("CPU", 0) == 0
        pool.close()
        ray.kill(office)
        deadline = time.monotonic() + 60
        while ray.available_resources() != ray.cluster_resources() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert ray.available_resources() == ray.cluster_resources()
    finally:
        ray.shutdown()
