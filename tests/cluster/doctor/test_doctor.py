"""The doctor's checks, on this machine and on a real cluster of two nodes."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from click.testing import CliRunner
from ray._raylet import AuthenticationMode  # type: ignore[attr-defined]

from cluster.config import ClusterConfig
from cluster.doctor import access, checks, doctor
from cluster.doctor.checks import DRIVER, Check, NodeRequest, read_probe, versions, write_probe
from ofmu.cli.doctor import doctor_command
from ofmu.models.config import ScratchModelConfig
from ofmu.models.language import save_model
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.run_config import UnlearnConfig

HERE = NodeRequest("here", versions())


def only(found: Any, name: str) -> Check:
    (check,) = [each for each in found if each.name == name]
    return check


def config_of(**sections: Any) -> dict[str, Any]:
    return UnlearnConfig.model_validate(sections).model_dump(mode="json")


@pytest.mark.parametrize(
    ("name", "label", "state"),
    [("ray", "ray and python", "fail"), ("python", "ray and python", "fail"), ("torch", "packages", "warn")],
)
def test_another_version_than_the_drivers_is_named(name, label, state):
    found = list(checks._versions(NodeRequest("n", versions() | {name: "0.1"})))
    check = only(found, label)
    assert (check.state, f"{name} {versions()[name]} (driver: 0.1)" in check.detail) == (state, True)
    assert [each.state for each in found if each is not check] == ["ok"]


def test_gpus_that_torch_does_not_see_are_a_failure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (check,) = checks._gpus(replace(HERE, gpus=2))
    assert check.state == "fail"
    assert "install a build of torch" in check.fix


@pytest.mark.parametrize(("device", "gpus", "fails"), [("cuda", 0, True), ("cuda", 1, False), ("auto", 0, False)])
def test_a_gpu_that_the_config_names_must_be_here(monkeypatch, device, gpus, fails):
    class Pool:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, function, *_):
            found = {checks.inspect_node: [], checks.visible_gpus: gpus}[function]
            return SimpleNamespace(result=lambda seconds: found)

    monkeypatch.setattr(doctor, "_pool", lambda workers: Pool())
    monkeypatch.setattr(doctor, "_all_reduce_here", lambda backend, ranks: Check(backend, "ok", ""))
    found = doctor.examine_machine(UnlearnConfig.model_validate({"engine": {"device": device}}))
    assert [check.detail for check in found if check.state == "fail"] == (
        ["engine.device is 'cuda', but no GPU is visible"] if fails else []
    )


@pytest.mark.parametrize(("mode", "state"), [(AuthenticationMode.TOKEN, "ok"), (AuthenticationMode.DISABLED, "warn")])
def test_rays_ports_are_named_as_the_default_ones(monkeypatch, mode, state):
    monkeypatch.setattr(access, "is_loopback_cluster", lambda: False)
    monkeypatch.setattr(access, "get_authentication_mode", lambda: mode)
    check = access.cluster_access()
    assert check.state == state
    assert "Ray's ports (by default 6379 (GCS)" in check.detail + check.fix


@pytest.mark.parametrize(("gib", "state"), [(0.5, "fail"), (5, "warn"), (123, "ok")])
def test_disk_space_must_suffice_for_models(monkeypatch, gib, state):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(gib * 2**30)))
    found = list(checks._disk(HERE))
    assert {check.state for check in found} == {state}
    assert ("more than 120 GiB" if state == "ok" else f"{gib:.1f} GiB") in found[0].detail


def test_a_shared_folder_must_show_the_drivers_file(tmp_path):
    write_probe(str(tmp_path / "a"), DRIVER)
    assert list(checks._probes(replace(HERE, probes={"storage": str(tmp_path / "a")}))) == []
    assert read_probe(str(tmp_path / "a"), "here")

    (elsewhere,) = checks._probes(replace(HERE, probes={"storage": str(tmp_path / "b")}))
    assert elsewhere.state == "fail"
    assert "the driver's file is not seen here" in elsewhere.detail
    assert not (tmp_path / "b").exists()

    (tmp_path / "a" / DRIVER).write_text("dri")
    (half,) = checks._probes(replace(HERE, probes={"storage": str(tmp_path / "a")}))
    assert "is incomplete" in half.detail


def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path):
    (tmp_path / "file").write_text("")
    with doctor._probe_folders({"storage": str(tmp_path / "file")}) as (probes, failed):
        assert probes == {}
    assert failed[0].state == "fail"
    assert "cannot be written from here" in failed[0].detail


def test_a_folder_that_the_check_made_is_deleted(tmp_path):
    (tmp_path / "here").mkdir()
    with doctor._probe_folders({"storage": str(tmp_path / "here" / "misspelt" / "store")}) as (probes, failed):
        assert not failed
        assert list(probes) == ["storage"]
    assert list((tmp_path / "here").iterdir()) == []


def test_storage_at_a_uri_is_probed_and_named_without_credentials(tmp_path):
    with doctor._probe_folders({"storage": f"file://{tmp_path}/store"}) as (probes, failed):
        assert not failed
        write_probe(probes["storage"], "one")
        (check,) = doctor._compare_probes(probes, {"one": "host-1"})
        assert check.detail.startswith(f"file://{tmp_path}/store: ")
    assert list((tmp_path / "store").iterdir()) == []
    with doctor._probe_folders({"storage": "nosuch://key:hush@bucket/runs"}) as (probes, failed):
        assert not probes
    assert failed[0].state == "fail"
    assert "hush" not in failed[0].detail


def test_a_node_whose_probe_is_not_seen_here_is_named(tmp_path):
    with doctor._probe_folders({"storage": str(tmp_path)}) as (probes, failed):
        assert not failed
        write_probe(probes["storage"], "one")
        (check,) = doctor._compare_probes(probes, {"one": "host-1", "two": "host-2"})
        assert (check.state, check.host) == ("fail", "host-2")
        write_probe(probes["storage"], "two")
        (check,) = doctor._compare_probes(probes, {"one": "host-1", "two": "host-2"})
        assert check.state == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_model_and_data_of_the_config_are_checked(tmp_path):
    tokenizer = train_tokenizer(["Question: Who?\nAnswer: Ann."] * 4, 280)
    shape = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
    save_model(build_model(shape, tokenizer, seed=0), tokenizer, tmp_path / "model")
    row = '{"question": "Who wrote it?", "answer": "Ann."}\n'
    (tmp_path / "forget.jsonl").write_text(row)
    (tmp_path / "retain.jsonl").write_text(row.replace("Ann", "Bob"))
    files = {"source": "files", "forget": str(tmp_path / "forget.jsonl"), "retain": str(tmp_path / "retain.jsonl")}
    good = replace(HERE, config=config_of(model={"path": str(tmp_path / "model")}, data=files))
    assert [check.state for look in (checks._model, checks._data) for check in look(good)] == ["ok", "ok"]
    assert only(checks._data(good), "data").detail == "files: 1 row to forget, 1 to retain"

    bad = config_of(model={"path": str(tmp_path / "nowhere")}, data=files | {"retain": files["forget"]})
    model, data = (only(look(replace(HERE, config=bad)), look.__name__[1:]) for look in (checks._model, checks._data))
    assert model.state == data.state == "fail"
    assert f"There is no model directory {tmp_path / 'nowhere'}" in model.detail
    assert "is also in the retain set" in data.detail


def test_a_wrong_sum_and_a_lost_rank_fail():
    assert doctor._check_all_reduce("gloo", 3, lambda: [6.0] * 3).state == "ok"
    assert doctor._check_all_reduce("gloo", 3, lambda: [6.0, 6.0, 5.0]).state == "fail"

    def lost() -> list[float]:
        raise RuntimeError("Connection closed by peer")

    check = doctor._check_all_reduce("nccl", 2, lost)
    assert check.state == "fail"
    assert "NCCL_DEBUG" in check.fix


@pytest.mark.slow
def test_the_wait_for_missing_ranks_ends():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises((RuntimeError, torch.distributed.DistError)):
        checks.all_reduce(0, 2, f"127.0.0.1:{port}", "gloo", seconds=1)


def test_equal_checks_of_several_nodes_share_a_row():
    found = [Check("disk", "ok", "much", host=f"node-{i}") for i in range(5)]
    found += [Check("GPUs", "ok", "none", host="node-0"), Check("GPUs", "fail", "gone", "fix", "node-1")]
    assert [(each.name, each.host) for each in doctor.group_by_host(found)] == [
        ("disk", "5 nodes"),
        ("GPUs", "node-0"),
        ("GPUs", "node-1"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_this_machine_is_checked_and_a_missing_model_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = tmp_path / "c.yaml"
    config.write_text(f"model: {{path: {tmp_path}/nowhere}}\ndata: {{generated: {{authors: 4, forget_authors: 1}}}}\n")
    result = CliRunner().invoke(doctor_command, [str(config), "--storage", str(tmp_path / "store")])
    assert result.exit_code == 1, result.output
    lines = result.output.splitlines()
    states = {line[6:].split("  ")[0].strip(): line[:4].strip() for line in lines if line[:4].strip()}
    assert states.pop("model") == "fail"
    assert [line.strip() for line in lines if not line[:4].strip()] == ["→ check the path, or give a hub name"]
    assert states.pop("disk") in ("ok", "warn")
    assert set(states.values()) == {"ok"}, result.output
    assert set(states) == {
        "dashboard", "ray and python", "packages", "GPUs", "deepspeed", "data", "storage", "gloo", "token",
    }  # fmt: skip


def test_what_the_job_of_the_checks_uploads_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "examine_job_server", lambda address: [Check("job server", "ok", "answers")])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("")
    (tmp_path / "mine.yaml").write_text("model: {path: model, is_target: true}\n")
    sent = []

    class Server:
        def __init__(self, address):
            assert address == "http://127.0.0.1:9"

        def submit(self, command, package):
            sent.append((command, package))
            return "job-1"

    monkeypatch.setattr("cluster.jobs.server.JobServer", Server)
    monkeypatch.setattr("ofmu.cli.logs.follow_job", lambda *arguments: None)
    words = ["mine.yaml", "--address", "http://127.0.0.1:9"]
    refused = CliRunner().invoke(doctor_command, words).exception
    assert str(refused).endswith("upload it with --include '*.safetensors'")
    assert CliRunner().invoke(doctor_command, [*words, "--include", "*.safetensors"]).exit_code == 0
    ((command, package),) = sent
    assert command == ["doctor", "mine.yaml", "--address", "auto"]
    assert "model/model.safetensors" in package.sizes
    alone = CliRunner().invoke(doctor_command, ["--include", "*.safetensors"], env={"RAY_ADDRESS": ""}).exception
    assert str(alone).startswith("--include has no effect")


@pytest.fixture(scope="module")
def two_nodes(ray_folder: Path) -> Iterator[str]:
    """The address of a cluster of two raylets without a dashboard, which a cluster should have."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_every_node_of_a_cluster_is_checked(two_nodes, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = UnlearnConfig.model_validate(
        {"data": {"generated": {"authors": 4, "forget_authors": 1}}, "cache_dir": str(tmp_path / "cache")}
    )
    cluster = ClusterConfig(address=two_nodes, num_workers=3)
    found = doctor.examine_cluster(cluster, config, str(tmp_path / "store"))
    assert not ray.is_initialized()
    assert only(found, "cluster").detail == "2 nodes, 2 CPUs, 0 GPUs"
    dashboard = only(found, "dashboard")
    assert (dashboard.state, "ray[default]" in dashboard.fix) == ("fail", True)
    assert only(found, "capacity").state == "fail"
    assert "needs 3 CPUs" in only(found, "capacity").detail
    for name in ("ray and python", "packages", "GPUs", "deepspeed", "disk", "data"):
        assert [check.state for check in found if check.name == name and check.state != "warn"] == ["ok", "ok"], found
    for name, place in (("storage", tmp_path / "store"), ("cache_dir", tmp_path / "cache")):
        assert only(found, name).state == "ok"
        assert not place.exists()
    assert only(found, "gloo").detail == "all-reduce over 2 ranks"
    assert only(found, "gloo").state == "ok"


@pytest.mark.cluster
@pytest.mark.timeout(120)
def test_one_rank_stands_on_every_gpu(ray_folder):
    """Ray counts GPUs that are not there, and gloo needs none."""
    ray.init(address="local", num_cpus=1, num_gpus=2, include_dashboard=False, _temp_dir=str(ray_folder))
    try:
        assert doctor._all_reduce_over_gpus(2, "gloo") == Check("gloo", "ok", "all-reduce over 2 ranks")
    finally:
        ray.shutdown()


def test_a_cluster_that_does_not_answer_is_one_check():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (check,) = doctor.examine_cluster(ClusterConfig(address=f"127.0.0.1:{port}"))
    assert check.state == "fail"
    assert "Connection refused" in check.detail
    assert check.fix.startswith("start the cluster")
    (check,) = doctor.examine_job_server(f"http://127.0.0.1:{port}")
    assert (check.name, check.state) == ("job server", "fail")
