"""What a trial costs beside its own work when it follows another: run ``python tests/bench/bench_groups.py``.

Trials of one outer step run one after the other, in this process (0 workers) and in worker groups of 1 and 2. ``fixed``
is the trial's time without the seconds that its cost tracker counts as inner steps, outer steps and evaluation. What
remains is reading data and model, the engine, saving, one checkpoint, and the way to the workers and back. ``CPU`` is
what all processes of the trial and of Ray computed in that time, so it bounds the fixed share from above on a busy
machine. ``first`` is
the trial that starts the group. Columns: seconds; median, least and greatest of the later trials.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray

from cluster.config import ClusterConfig
from cluster.session import ray_session
from cluster.train.trainer import run_trial
from cluster.train.worker_group import WorkerGroupPool
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.preparation import Prepared
from tune.execution.trainable import Executor

WORK = ("inner", "outer", "evaluation")
SETTINGS: dict[str, Any] = {
    "model": {"scratch": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "vocab_size": 384}},
    "data": {"source": "generated", "max_length": 96, "generated": {"authors": 6, "forget_authors": 2}},
    "training": {"epochs": 1},
    "method": {"outer_steps": 1, "inner_steps": 1, "batch_size": 4},
    "engine": {"device": "cpu", "threads": 1},
    "evaluation": {"rouge": False},
}


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and all below it, Ray's too; those that ended are left out."""
    total = 0.0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def measure(trials: Executor, config: UnlearnConfig, workers: int, place: Path, prepared: Prepared) -> list[float]:
    """Run one trial; return its seconds, its seconds beside the work, and its CPU seconds."""
    started, before = time.perf_counter(), cpu_seconds()
    trials(config, ClusterConfig(num_workers=workers), place, prepared)
    whole, computed = time.perf_counter() - started, cpu_seconds() - before
    phases = json.loads((place / "metrics.json").read_text())["cost"]["seconds"]
    return [whole, whole - sum(phases[name] for name in WORK), computed]


def main() -> None:
    """Print one line for each number of workers and ZeRO stage."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=8)
    count = parser.parse_args().trials
    columns = ("whole", "fixed", "CPU")
    with tempfile.TemporaryDirectory(prefix="g", dir="/tmp") as folder, ray_session(ClusterConfig(num_workers=2)):
        os.environ["OFMU_CACHE"] = f"{folder}/cache"
        prepared = prepare(UnlearnConfig.model_validate(SETTINGS))
        print(f"{ray.cluster_resources().get('CPU'):g} cores, load {os.getloadavg()[0]:.1f}")
        for workers, stage in ((0, 2), (1, 2), (2, 2), (2, 3)):
            engine = SETTINGS["engine"] | {"zero_stage": stage}
            config = UnlearnConfig.model_validate(SETTINGS | {"engine": engine})
            pool = WorkerGroupPool()
            places = [Path(folder, f"{workers}-{stage}-{number}") for number in range(count + 1)]
            first, *later = [
                measure(pool if workers else run_trial, config, workers, place, prepared) for place in places
            ]
            pool.close()
            told = [
                f"{name} {statistics.median(each):.2f} [{min(each):.2f}, {max(each):.2f}]"
                for name, each in zip(columns, zip(*later, strict=True), strict=True)
            ]
            told.append(f"load {os.getloadavg()[0]:.1f}")
            print(f"{workers} workers, stage {stage}: first {first[0]:.1f}; {'; '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
