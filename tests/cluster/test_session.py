"""Joining a cluster: an address at which none answers, and how many GPUs a trial reserves."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config import ClusterConfig
from cluster.session import max_parallel_trials, ray_session
from ofmu.cli.main import main
from ofmu.errors import ClusterError


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address whose port is bound and not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("form", ["{}", "ray://{}", "nonsense"])
def test_the_fix_names_what_holds_the_address(form: str, nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = form.format(nowhere)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match="correct the variable RAY_ADDRESS, or unset it") as caught:
        ray_session(ClusterConfig()).__enter__()
    assert "cluster.address" not in str(caught.value)
    with pytest.raises(ClusterError, match=r"correct cluster\.address, or leave it out") as caught:
        ray_session(ClusterConfig(address=address)).__enter__()
    assert "RAY_ADDRESS" not in str(caught.value)


def test_doctor_names_the_variable_too(
    nowhere: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nowhere)
    with pytest.raises(SystemExit):
        main(["doctor"])
    output = "".join(capsys.readouterr())
    assert "RAY_ADDRESS" in output
    assert "cluster.address" not in output


@pytest.fixture
def two_gpus(ray_folder: Path) -> Iterator[None]:
    """A Ray cluster that counts four CPUs and two GPUs. Ray reserves what it is told of."""
    import ray  # takes seconds, and most tests need no cluster

    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.cluster
def test_each_trial_reserves_a_gpu_where_there_are_some(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def trials(device: str = "auto", **settings: Any) -> int:
        with ray_session(ClusterConfig(**settings), device) as cluster:
            assert cluster.gpus_per_worker != "auto"
            return max_parallel_trials(cluster, None)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert trials() == 2
    assert trials("cuda") == 2
    assert trials("cpu") == 4
    assert trials(gpus_per_worker=0.5) == 4
    assert trials(num_workers=2) == 1
    assert trials(num_workers=2, gpus_per_worker=0) == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert trials() == 4, "PyTorch without CUDA uses no card of this machine"
