"""A search that ``ray job submit`` sends to a running cluster: its upload, its nodes, and its run directory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from transformers import AutoModelForCausalLM

from tune.study.storage import read_study

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
NOT_UPLOADED = (".git", ".venv", "runs", "build", ".mypy_cache")
"""Folders that a checkout may contain and that no cluster needs."""
SECRET = "hush-9f3a7c1e"
"""The value of a variable of the job's environment. No run directory may contain it."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


@pytest.fixture
def head(ray_folder: Path, tmp_path: Path) -> Iterator[str]:
    """A head node with its job server, in its own process group. Its home directory has no auth token."""
    gcs, dashboard, agent, client = free_ports(4)
    environment = os.environ | {
        "HOME": str(ray_folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = (tmp_path / "head.log").open("w")
    process = subprocess.Popen(
        [
            *RAY,
            "start",
            "--head",
            "--block",
            "--num-cpus=2",
            "--node-ip-address=127.0.0.1",
            f"--port={gcs}",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}",
            "--disable-usage-stats",
        ],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(f"{address}/api/version", process, tmp_path / "head.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


@pytest.fixture
def checkout(tmp_path: Path, smallest_search: dict[str, Any]) -> Path:
    """A copy of this checkout's packages and a config, with folders that must not be uploaded.

    The copy's trainer appends its own path to a file when it is imported. So the test can tell the uploaded packages
    from the installed ones.
    """
    copy = tmp_path / "checkout"
    for package in ("ofmu", "tune", "cluster"):
        shutil.copytree(ROOT / package, copy / package)
    shutil.copy2(ROOT / ".gitignore", copy)
    for name in NOT_UPLOADED:
        (copy / name).mkdir()
        (copy / name / "large").write_bytes(bytes(1000))
    (copy / "tiny.yaml").write_text(yaml.safe_dump(smallest_search))
    trainer = copy / "ofmu" / "trainer.py"
    recorder = f"\nwith open({str(tmp_path / 'imported')!r}, 'a') as _stream:\n    _stream.write(__file__ + '\\n')\n"
    trainer.write_text(trainer.read_text(encoding="utf-8") + recorder, encoding="utf-8")
    return copy


def test_a_submitted_search_writes_a_complete_run_directory(head, checkout, ray_folder, tmp_path):
    run_dir = tmp_path / "run"
    entry = ["python", "-m", "ofmu", "search", "tiny.yaml", "search.num_trials=4", f"cache_dir={tmp_path / 'cache'}"]
    submitted = subprocess.run(
        [
            *RAY,
            "job",
            "submit",
            "--address",
            head,
            "--working-dir",
            str(checkout),
            "--runtime-env-json",
            json.dumps({"env_vars": {"MY_TOKEN": SECRET}}),
            "--",
            *entry,
            "--run-dir",
            str(run_dir),
        ],
        env=os.environ | {"HOME": str(ray_folder)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    output = submitted.stdout + submitted.stderr
    assert submitted.returncode == 0, output
    assert "succeeded" in output
    assert "4 trials complete, 0 failed" in output
    assert "Traceback" not in output

    check_run_directory(run_dir)
    assert SECRET not in output
    assert [path for path in run_dir.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []
    check_upload(ray_folder, (tmp_path / "imported").read_text().splitlines())


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 1])
def test_a_submitted_search_uploads_the_users_module(head, checkout, ray_folder, tmp_path, smallest_search, workers):
    """The user's own method and objective are only in the working directory."""
    shutil.copy2(ROOT / "examples" / "own_module.py", checkout)
    mapping = smallest_search | {
        "method": {"name": "fadingascent", "module": "own_module", "batch_size": 2, "steps": 2},
        "search": {
            "num_trials": 3,
            "space": {"method.half_life": {"low": 2.0, "high": 50.0}},
            "objectives": {"own_module:best_remembered": "min", "model_utility": "max"},
        },
        "cluster": {"num_workers": workers},
        "cache_dir": str(tmp_path / "cache"),
    }
    (checkout / "own.yaml").write_text(yaml.safe_dump(mapping))
    entry = ["python", "-m", "ofmu", "search", "own.yaml", "--run-dir", str(tmp_path / "run")]
    submitted = subprocess.run(
        [*RAY, "job", "submit", "--address", head, "--working-dir", str(checkout), "--", *entry],
        env=os.environ | {"HOME": str(ray_folder)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    trials = pd.read_csv(tmp_path / "run" / "trials.csv")
    assert trials["state"].tolist() == ["complete"] * 3, trials["reason"].tolist()
    assert trials["own_module:best_remembered"].between(0, 1).all()


def check_run_directory(run_dir: Path) -> None:
    trials = pd.read_csv(run_dir / "trials.csv")
    assert trials["state"].tolist() == ["complete"] * 4
    front = pd.read_csv(run_dir / "front.csv")
    assert 0 < len(front) <= 4
    study = read_study(run_dir / "study.log")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    assert json.loads((run_dir / "search.json").read_text())["complete"] == 4
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["search"]["num_trials"] == 4
    assert json.loads((run_dir / "environment.json").read_text())["versions"]["ray"]
    assert (run_dir / "front.png").read_bytes().startswith(b"\x89PNG")
    for number in front["trial"]:
        model = AutoModelForCausalLM.from_pretrained(run_dir / "trials" / f"{number:05d}" / "model")
        assert model.num_parameters() > 0


def check_upload(ray_folder: Path, imported: list[str]) -> None:
    """Check that the driver and the trials ran on this head's workers, with the uploaded packages."""
    packages = [
        path for path in ray_folder.glob("ray/session_*/runtime_resources/working_dir_files/*") if path.is_dir()
    ]
    (uploaded,) = {path.resolve() for path in packages}
    names = {path.name for path in uploaded.iterdir()}
    assert {"ofmu", "tune", "cluster", "tiny.yaml"} <= names
    assert not names & {*NOT_UPLOADED}
    assert imported
    assert {Path(place).resolve() for place in imported} == {uploaded.resolve() / "ofmu" / "trainer.py"}
