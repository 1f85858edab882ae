"""A search's metrics, scraped from the metrics endpoint of a real Ray as Prometheus does."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tune import ParetoSearch

SAMPLE = re.compile(r"^ray_(ofmu_search_\w+)\{(.*)\} (\S+)$")


def scrape(port: int, run_dir: Path) -> dict[tuple[str, str], float]:
    """Return the values of the samples with this run's label, by name and state."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    found = {}
    for line in text.splitlines():
        match = SAMPLE.match(line)
        if match is None:
            continue
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
        if labels.get("run") == str(run_dir):
            found[match[1], labels.get("state", "")] = float(match[3])
    return found


def execute(config: Any, cluster: Any, trial_dir: Path, prepared: Any) -> dict[str, Any]:
    rate = config.method.inner_lr_scale / 40
    scores = {"ks_statistic": 0.9 - 5 * rate, "model_utility": 0.6 - 3 * rate * rate}
    return {**scores, "gradient_evaluations": 100.0} if int(trial_dir.name) != 3 else {"gradient_evaluations": 7.0}


@pytest.fixture(scope="module")
def metrics_port(ray_folder: Path) -> Iterator[int]:
    every_half_second = {"metrics_report_interval_ms": 500}
    ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False, _system_config=every_half_second)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield int(ray.nodes()[0]["MetricsExportPort"])
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


@pytest.mark.cluster
@pytest.mark.long
@pytest.mark.timeout(600)
def test_prometheus_finds_the_metrics_of_a_search_and_of_its_resume(metrics_port, tmp_path):
    run_dir = tmp_path / "run"
    result = ParetoSearch({}, num_trials=5, run_dir=run_dir, executor=execute).run()
    wanted = {
        ("ofmu_search_trials", "complete"): 4.0,
        ("ofmu_search_trials", "failed"): 1.0,
        ("ofmu_search_trials", "pruned"): 0.0,
        ("ofmu_search_trials", "running"): 0.0,
        ("ofmu_search_trials", "waiting"): 0.0,
        ("ofmu_search_hypervolume", ""): pytest.approx(result.hypervolume),
        ("ofmu_search_gradient_evaluations_total", ""): 407.0,
    }
    found = wait_for(metrics_port, run_dir, wanted)
    assert found["ofmu_search_gradient_evaluations_per_second", ""] > 0

    longer = ParetoSearch.resume(run_dir, ["search.num_trials=6"], executor=execute)
    wait_for(
        metrics_port,
        run_dir,
        {
            ("ofmu_search_trials", "complete"): 5.0,
            ("ofmu_search_hypervolume", ""): pytest.approx(longer.hypervolume),
        },
    )


def wait_for(port: int, run_dir: Path, wanted: dict[tuple[str, str], Any]) -> dict[tuple[str, str], float]:
    deadline = time.monotonic() + 120
    while True:
        found = scrape(port, run_dir)
        if all(found.get(key) == value for key, value in wanted.items()):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


@pytest.mark.slow
def test_without_ray_no_metrics_are_published():
    """Run in another process, since this process may have a Ray session."""
    script = """
from pathlib import Path
import pandas as pd
from tune.study.finished_trial import FinishedTrial
from tune.callbacks.prometheus import PrometheusCallback
from tune.callbacks.base import Progress
from types import SimpleNamespace

table = pd.DataFrame({"trial": [0], "state": ["complete"], "gradient_evaluations": [3.0]})
result = SimpleNamespace(trials=table, run_dir=Path("run"), hypervolume=0.5)
progress = Progress(result, 4, 1, 0, (1,), 2.0, None)
callback = PrometheusCallback()
callback.on_start(progress)
callback.on_trial_end(FinishedTrial(number=1, state="complete", role="sampled", settings={}, objectives={},
    metrics={"gradient_evaluations": 5.0}, directory=Path("run/trials/00001"), reason=None))
callback.on_progress(progress)
import ray
assert not ray.is_initialized()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)
