from __future__ import annotations

import pytest
import torch

from cluster import capacity
from cluster.capacity import check_trial_fits
from cluster.config import ClusterConfig
from cluster.train.trainer import train
from ofmu.config.files import validate
from ofmu.errors import ConfigError, MemoryLimitError
from ofmu.plan import check
from ofmu.run_config import UnlearnConfig
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


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({}, {}),
        ({"num_workers": 3}, {"ranks": 3, "on_gpu": None}),
        ({"num_workers": 3, "gpus_per_worker": 0}, {"ranks": 3, "on_gpu": False}),
        ({"num_workers": 2, "gpus_per_worker": 0.5}, {"ranks": 2, "on_gpu": None, "share": 0.5}),
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
