"""Searches whose run directory is in a bucket of a real server that speaks S3, killed and taken up elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import fs
from transformers import AutoModelForCausalLM

from s3_server import KEYS, s3_server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

DRIVER = Path(__file__).resolve().parents[1] / "helpers" / "search_s3_driver.py"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as options:
        yield options


class Bucket:
    """What lies below a URI, by pyarrow alone."""

    def __init__(self, uri: str) -> None:
        self._system, self._root = fs.FileSystem.from_uri(uri)

    def names(self) -> set[str]:
        found = self._system.get_file_info(fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        return {each.path[len(self._root) + 1 :] for each in found if each.type == fs.FileType.File}

    def read(self, name: str) -> bytes:
        return bytes(self._system.open_input_stream(f"{self._root}/{name}", compression=None).read())


def ofmu(machine: Path, ray_folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command line as on a machine of its own: nothing but the bucket is common."""
    machine.mkdir(exist_ok=True)
    environment = {**os.environ, "OFMU_CACHE": str(machine), "RAY_TMPDIR": str(ray_folder)}
    return subprocess.Popen(
        [sys.executable, "-m", "ofmu", *arguments],
        env=environment,
        cwd=machine,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def made_in(cache: Path) -> dict[str, str]:
    """Return the manifest of each prepared model of a cache: making it again would take other seconds."""
    return {path.parent.name: path.read_text() for path in cache.glob("models/*/complete.json")}


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.mark.long
def test_a_search_in_a_bucket_is_killed_and_ends_on_another_machine(
    ray_folder: Path, tmp_path: Path, options: str, smallest_search: dict[str, Any]
):
    uri = f"s3://{KEYS['AWS_ACCESS_KEY_ID']}:{KEYS['AWS_SECRET_ACCESS_KEY']}@bucket/killed/run?{options}"
    bucket = Bucket(uri)
    search = smallest_search["search"] | {"num_trials": 4, "max_concurrent_trials": 1}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(smallest_search | {"search": search}))
    first = ofmu(tmp_path / "one", ray_folder, "search", str(config), "--run-dir", uri)
    while sum(name.endswith("/metrics.json") for name in bucket.names()) < 1:
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.communicate()

    made = made_in(tmp_path / "one")
    output = finished(ofmu(tmp_path / "two", ray_folder, "search", "--resume", uri))
    assert made_in(tmp_path / "two") == made, "what the first machine has prepared was fetched, not made again"
    assert f"everything is in s3://bucket/killed/run?{options}" in output
    summary = json.loads(bucket.read("search.json"))
    assert (summary["complete"], summary["failed"]) == (4, 0)
    names = bucket.names()
    assert {name.split("/")[1] for name in names if name.startswith("trials/")} == {f"{n:05d}" for n in range(4)}
    models = {int(name.split("/")[1]) for name in names if "/model/" in name}
    assert models == set(summary["front"])
    assert not any("/checkpoints/" in name for name in names)
    assert "driver.lock" not in names
    for name in names:
        assert KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in bucket.read(name), name
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in output

    report = finished(ofmu(tmp_path / "three", ray_folder, "report", uri))
    assert str(summary["knee"]) in report
    target = tmp_path / "model"
    finished(ofmu(tmp_path / "three", ray_folder, "export", uri, "--pick", "knee", "--output", str(target)))
    assert AutoModelForCausalLM.from_pretrained(target).num_parameters() > 0
    again = ofmu(tmp_path / "two", ray_folder, "search", str(config), "--run-dir", uri)
    refused, _ = again.communicate(timeout=600)
    assert (again.returncode, "already holds a run" in refused) == (1, True), refused


@pytest.mark.long
def test_a_trial_that_lost_its_process_and_its_directory_goes_on_from_the_bucket(
    ray_folder: Path, tmp_path: Path, options: str, smallest_search: dict[str, Any]
):
    uri = f"s3://bucket/trial/run?{options}"
    search = {"num_trials": 2, "max_concurrent_trials": 1, "space": {"method.inner_lr": {"low": 0.01, "high": 0.1}}}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(smallest_search | {"search": search}))
    environment = {**os.environ, "OFMU_CACHE": str(tmp_path / "cache"), "RAY_TMPDIR": str(ray_folder)}
    command = [sys.executable, str(DRIVER), uri, str(config), str(tmp_path / "flag")]
    done = subprocess.run(command, env=environment, timeout=800, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = (tmp_path / "steps.txt").read_text().split("\n")
    # trial 1 is the paper's setting, with K 10
    rounds = list(range(1, 11))
    assert [line for line in steps if line.startswith("00001")] == [f"00001 {step}" for step in rounds]
    history = Bucket(uri).read("trials/00001/history.jsonl").decode().splitlines()
    assert [json.loads(line)["outer_step"] for line in history] == rounds


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("s3://nobucket/run?{options}", "there is no such bucket"),
        ("s3://me:hush@bucket/run?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1", "does not answer"),
    ],
)
def test_storage_that_refuses_is_one_sentence(ray_folder: Path, tmp_path: Path, options: str, place: str, reason: str):
    process = ofmu(tmp_path / "one", ray_folder, "search", "quickstart", "--run-dir", place.format(options=options))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert len([line for line in output.splitlines() if line.startswith("Error: ")]) == 1, output
    assert reason in output
    assert "Traceback" not in output
    assert "hush" not in output
