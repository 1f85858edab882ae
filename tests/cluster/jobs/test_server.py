"""Jobs on a real head whose job server needs a token, through the command line."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests

from cluster.jobs.server import Job, JobServer, _server_errors, chosen_environment
from ofmu.errors import ClusterError, ConfigError, RunError

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "0123456789abcdef" * 4
SECRET = "hush-9f3a7c1e"
PLANTED = {
    "AWS_ACCESS_KEY_ID": "PLANTEDKEYAAAAAAAAAA",
    "AWS_SECRET_ACCESS_KEY": "planted/secret/bbbbbbbbbbbb",
    "AWS_SESSION_TOKEN": "planted-session-cccccccccc",
    "HF_TOKEN": "hf_planteddddddddddddd",
    "WANDB_API_KEY": "planted-wandb-eeeeeeeee",
    "GOOGLE_APPLICATION_CREDENTIALS": "/planted/google/fffff.json",
}
"""Secrets of the submitting user's shell, which no job was given."""

OWN_PACKAGE = """
import hashlib, os, sys, time
print("arguments", *sys.argv[1:], flush=True)
print("secret", hashlib.sha256(os.environ.get("MY_SECRET", "").encode()).hexdigest())
if "wait" in sys.argv:
    time.sleep(300)
sys.exit(7 if "fail" in sys.argv else 0)
"""
"""A package ``ofmu`` in the working directory. It starts at once and prints what it was given."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


@pytest.fixture(scope="module")
def head(ray_folder: Path) -> Iterator[str]:
    """The address of a job server that needs a token. All tests of this file share the head."""
    (ray_folder / "token").write_text(TOKEN)
    gcs, dashboard, agent, client = free_ports(4)
    ports = (f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}")
    environment = os.environ | {
        "HOME": str(ray_folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(ray_folder / "token"),
    }
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    more = ["--node-ip-address=127.0.0.1", f"--ray-client-server-port={client}", "--disable-usage-stats", *ports]
    with (ray_folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            [*start, *more], env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(address, process, ray_folder / "head.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    headers = {"Authorization": f"Bearer {TOKEN}"}
    while True:
        assert process.poll() is None, log.read_text()
        try:
            if requests.get(f"{address}/api/version", headers=headers, timeout=5).ok:
                return
        except requests.exceptions.RequestException:
            pass
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.fixture
def token(ray_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_folder / "token"))


@pytest.fixture
def own_package(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    (folder / "ofmu").mkdir(parents=True)
    # Without this file Python prefers the installed package, which comes later on its path.
    (folder / "ofmu" / "__init__.py").touch()
    (folder / "ofmu" / "__main__.py").write_text(OWN_PACKAGE)
    return folder


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start this checkout's ``ofmu`` in a folder that may contain a package of the same name."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from ofmu.cli.main import entry_point; entry_point()"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=folder,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def call(folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    with start(folder, *arguments, **variables) as process:
        output, _ = process.communicate(timeout=150)
        return process.returncode, output


@pytest.mark.cluster
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("token")
def test_a_job_from_a_clone_finds_all_modules_of_the_package(head):
    """The job imports the uploaded package, and ends at its first question: whether there is such a directory."""
    # The tests hold the secrets that another test looks for in the head's files.
    upload = ["--follow", "--exclude", "/tests"]
    code, output = call(ROOT, "submit", "--address", head, *upload, "--", "search", "--resume", "/nowhere/run")
    assert code == 1
    assert "Error: There is no run directory /nowhere/run: check the path" in output
    assert "ModuleNotFoundError" not in output


@pytest.mark.cluster
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("token")
def test_ctrl_c_leaves_a_followed_job_running_and_names_the_command_that_follows_it_again(head, own_package):
    follow = ["submit", "--address", head, "--follow", "--env", "MY_SECRET", "--", "search", "wait"]
    with start(own_package, *follow, MY_SECRET=SECRET) as process:
        assert process.stdout is not None
        seen = ""
        while "\nsecret " not in seen:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        process.send_signal(signal.SIGINT)
        seen += process.communicate(timeout=60)[0]
    assert process.returncode == 130, seen
    assert "Traceback" not in seen
    (job_id,) = set(re.findall(r"raysubmit_\w+", seen))
    assert f"{job_id} goes on: ofmu logs {job_id} --address {head} --follow shows it again" in seen
    # The job got the secret, and no output contains it.
    assert "secret " + hashlib.sha256(SECRET.encode()).hexdigest() in seen
    assert SECRET not in seen
    assert TOKEN not in seen

    server = JobServer(head)
    assert server.job(job_id).status == "RUNNING"
    code, listed = call(own_package, "jobs", "--address", head)
    assert code == 0
    assert re.search(rf"{job_id}  running .* ofmu search wait\n", listed), listed
    assert SECRET not in listed
    assert call(own_package, "logs", job_id, "--address", head)[1].count("arguments search wait") == 1

    code, stopped = call(own_package, "stop", job_id, "--address", head)
    assert (code, stopped) == (0, f"{job_id} stopped\n")
    assert server.job(job_id).exit_status != 0
    assert call(own_package, "stop", job_id, "--address", head)[1] == f"{job_id} is over already: stopped\n"


@pytest.mark.cluster
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("token")
def test_a_followed_job_exits_as_its_command_does(head, own_package, ray_folder):
    # --address overrides $RAY_ADDRESS. In Ray's own client $RAY_ADDRESS would win.
    variables = {"RAY_ADDRESS": "no:1", **PLANTED}
    code, output = call(own_package, "submit", "--address", head, "--follow", "--", "search", "fail", **variables)
    assert code == 7, output
    assert output.rstrip().endswith("failed with exit status 7")
    assert "give --run-dir an absolute path" in output
    job_id = re.findall(r"raysubmit_\w+", output)[0]
    assert JobServer(head).job(job_id).exit_status == 7
    # The doctor runs as a job too, and checks the cluster from within.
    code, output = call(own_package, "doctor", "--address", head, "--storage", "/shared/runs", **PLANTED)
    assert code == 0, output
    assert "ok    ray, client and cluster  2." in output
    assert "arguments doctor --address auto --storage /shared/runs\n" in output
    # Neither the job table, which the dashboard shows, nor a file of the head has the secrets of the user's shell.
    answer = requests.get(f"{head}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
    table = {job["submission_id"]: job for job in answer.json()}
    assert table[job_id]["runtime_env"]["env_vars"] == {"PYTHONUNBUFFERED": "1"}
    assert [name for name, value in PLANTED.items() if value in answer.text] == []
    for path in (path for path in ray_folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert [name for name, value in PLANTED.items() if value.encode() in content] == [], path


@pytest.mark.cluster
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("token")
def test_the_uploaded_working_directory_runs_without_the_excluded_files(head, tmp_path, ray_folder):
    checkout = tmp_path / "checkout"
    for package in ("ofmu", "tune", "cluster"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("data/private.jsonl", "runs/search-1/study.log", ".venv/pyvenv.cfg", ".git/HEAD", ".env"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(SECRET)
    (checkout / "ours.yaml").write_text("{}")
    code, output = call(checkout, "submit", "--address", head, "--follow", "--", "search", "ours.yaml", "--help")
    assert code == 0, output
    assert "Usage: ofmu search [OPTIONS] [CONFIG]" in output
    uploaded = [path for path in ray_folder.glob("ray/session_*/runtime_resources/working_dir_files/*/ours.yaml")]
    (place,) = {path.resolve().parent for path in uploaded}
    assert {path.name for path in place.iterdir()} - {"__pycache__"} == {"ofmu", "tune", "cluster", "ours.yaml"}


@pytest.mark.cluster
@pytest.mark.timeout(240)
def test_wrong_tokens_and_unknown_jobs_get_one_sentence(head, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with pytest.raises(ClusterError, match="asks for a token, and none was found here"):
        JobServer(head)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    with pytest.raises(ClusterError, match="does not accept the token found here") as refused:
        JobServer(head)
    assert "f" * 64 not in str(refused.value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    server = JobServer(head.removeprefix("http://"))
    for ask in (server.job, server.logs, server.stop, lambda job_id: server.follow(job_id, print)):
        with pytest.raises(RunError, match="There is no job 'raysubmit_none'"):
            ask("raysubmit_none")


class Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>not Ray</html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_other_servers_and_closed_ports_get_one_sentence(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ClusterError, match="is not a Ray job server"):
            JobServer(f"127.0.0.1:{server.server_port}")
        server.shutdown()
        port = server.server_port
    with pytest.raises(ClusterError, match=rf"Nothing answers .*127\.0\.0\.1:{port}' \(Connection refused\)"):
        JobServer(f"http://127.0.0.1:{port}")
    with pytest.raises(ClusterError, match="does not name a job server: give --address http://HOST:8265"):
        JobServer("ray://127.0.0.1:10001")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ClusterError, match=r"\$RAY_ADDRESS '10.0.0.1:6379' does not name a job server"):
        JobServer()


def test_variables_are_named_or_given(monkeypatch):
    monkeypatch.setenv("HERE", "1=2")
    assert chosen_environment(["HERE", "THERE=a=b", "EMPTY="]) == {"HERE": "1=2", "THERE": "a=b", "EMPTY": ""}


@pytest.mark.parametrize("wrong", [f"={SECRET}", SECRET, f"1{SECRET}=x", "not_set_anywhere_" + SECRET[-4:]])
def test_a_misplaced_secret_is_not_printed(wrong):
    with pytest.raises(ConfigError, match="--env option 1 of 1 is neither") as refused:
        chosen_environment([wrong])
    assert SECRET[-4:] not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", None, 1), ("FAILED", -9, 137), ("STOPPED", None, 1)],
)
def test_the_exit_status_is_the_one_that_a_shell_reports(status, code, expected):
    assert Job(id="a", status=status, command="", exit_code=code).exit_status == expected


def test_an_unknown_command_is_answered_with_the_nearest_name(tmp_path):
    code, output = call(tmp_path, "submit", "--", "serch", "mine.yaml")
    assert code == 1
    assert output == "Error: 'serch' is no command to submit: did you mean 'search'?\n"


def test_a_head_whose_agent_lost_its_port_is_answered_with_the_option_of_ray() -> None:
    said = "Request failed with status code 500: No available agent to submit job, please try again later..\ntrace"
    with pytest.raises(ClusterError, match="--dashboard-agent-listen-port"), _server_errors("http://head:8265"):
        raise RuntimeError(said)
    with pytest.raises(ClusterError, match="refused: the last line"), _server_errors("http://head:8265"):
        raise RuntimeError("first\nthe last line\n")
