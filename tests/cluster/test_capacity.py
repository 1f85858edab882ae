from __future__ import annotations

import pytest
import torch
import yaml
from click.testing import CliRunner

from cluster import capacity
from cluster.capacity import check_trial_fits
from cluster.config import ClusterConfig
from cluster.train.evaluation import evaluations
from cluster.train.trainer import train
from ofmu.cli.main import cli
from ofmu.config.files import validate
from ofmu.errors import ConfigError, MemoryLimitError
from ofmu.plan import check
from ofmu.run_config import UnlearnConfig
from tune.compare.comparison import Comparison
from tune.search import ParetoSearch


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(check, "device_memory", lambda *, on_gpu: 2**20)


@pytest.mark.slow
def test_a_search_is_refused_before_a_cluster_starts(tiny_mapping, tmp_path, monkeypatch, little_memory):
    monkeypatch.setattr("tune.search.ray_session", pytest.fail)
    with pytest.raises(MemoryLimitError, match="ofmu plan"):
        ParetoSearch(tiny_mapping, run_dir=tmp_path / "search").run()
    assert not (tmp_path / "search" / "study.log").exists()


@pytest.mark.slow
def test_a_worker_group_is_refused_before_a_cluster_starts(tiny_config, tmp_path, monkeypatch, little_memory):
    monkeypatch.setattr("cluster.train.trainer.ray_session", pytest.fail)
    with pytest.raises(MemoryLimitError):
        train(tiny_config, tmp_path / "run", ClusterConfig(num_workers=2))


def test_a_search_on_a_gpu_that_is_not_here_prepares_nothing(tiny_mapping, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("tune.search.ray_session", pytest.fail)
    monkeypatch.setattr("tune.search.prepare_search", pytest.fail)
    mapping = tiny_mapping | {"engine": {"device": "cuda"}}
    with pytest.raises(ConfigError, match="no GPU is visible: use 'auto' or 'cpu'"):
        ParetoSearch(mapping, run_dir=tmp_path / "search").run()
    with pytest.raises(ConfigError, match="no GPU is visible"):
        train(validate(UnlearnConfig, mapping), tmp_path / "run", ClusterConfig(num_workers=2))


def test_workers_for_an_engine_of_one_process_are_refused_before_a_cluster_starts(tiny_mapping, tmp_path, monkeypatch):
    """A cluster elsewhere is refused too, whose machines are unknown."""
    for module in ("tune.search", "tune.compare.comparison", "cluster.train.trainer", "cluster.train.evaluation"):
        monkeypatch.setattr(f"{module}.ray_session", pytest.fail)
    workers = ClusterConfig(num_workers=2, address="10.0.0.1:6379")
    mapping = tiny_mapping | {"engine": {"device": "cpu", "backend": "torch"}}
    config, whole = validate(UnlearnConfig, mapping), mapping | {"cluster": workers.model_dump(mode="json")}
    starts = {
        "search": lambda: ParetoSearch(whole, run_dir=tmp_path / "search").run(),
        "comparison": lambda: Comparison(whole, ["npo", "graddiff"], run_dir=tmp_path / "comparison").run(),
        "run": lambda: train(config, tmp_path / "run", workers),
        "evaluation": lambda: evaluations(config, workers).__enter__(),
        "command": lambda: run_command(tmp_path, whole, "unlearn", "--output", str(tmp_path / "command")),
        "preparation": lambda: run_command(tmp_path, whole, "prepare"),
    }
    for name, start in starts.items():
        with pytest.raises(ConfigError, match="'torch' is for one process, and this run has 2 ranks"):
            start()
        assert not (tmp_path / name).exists() or name == "search", name
    assert not (tmp_path / "search" / "study.log").exists()


def run_command(folder, mapping, name, *options):
    (folder / "config.yaml").write_text(yaml.safe_dump(mapping))
    arguments = [name, str(folder / "config.yaml"), *options, f"cache_dir={folder / 'preparation'}"]
    CliRunner().invoke(cli, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({}, {}),
        ({"num_workers": 3}, {"ranks": 3, "on_gpu": None}),
        ({"num_workers": 3, "gpus_per_worker": 0}, {"ranks": 3, "on_gpu": False}),
        ({"num_workers": 1, "gpus_per_worker": 0.5}, {"ranks": 1, "on_gpu": None, "share": 0.5}),
        ({"address": "10.0.0.1:6379"}, None),
        ({"address": "auto"}, None),
    ],
)
def test_what_is_compared_depends_on_the_cluster(tiny_config, monkeypatch, cluster, expected):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    seen = []
    monkeypatch.setattr(capacity, "check_fit", lambda config, **options: seen.append(options))
    for keeps_round in (False, True):
        seen.clear()
        check_trial_fits(tiny_config, ClusterConfig(**cluster), keeps_round=keeps_round)
        assert seen == ([] if expected is None else [expected | {"keeps_round": keeps_round}])
