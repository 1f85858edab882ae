"""A search on a Ray of its own: who can reach its ports, read its files, and find its secrets."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SECRETS = {
    "AWS_ACCESS_KEY_ID": "PLANTEDKEYAAAAAAAAAA",
    "AWS_SECRET_ACCESS_KEY": "planted/secret/bbbbbbbbbbbb",
    "AWS_SESSION_TOKEN": "planted-session-cccccccccc",
    "HF_TOKEN": "hf_planteddddddddddddd",
    "WANDB_API_KEY": "planted-wandb-eeeeeeeee",
}


def command(folder: Path, home: Path) -> dict[str, str]:
    """The environment of a user with secrets, whose Ray's files lie in ``folder``."""
    dropped = ("RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_ADDRESS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, **SECRETS, "TMPDIR": str(folder), "HOME": str(home), "RAY_worker_niceness": "0"}


def listening(process: psutil.Process) -> Iterator[tuple[str, str]]:
    """Yield the address and the process of each listening socket of a process and its children."""
    for each in [process, *process.children(recursive=True)]:
        try:
            sockets = each.net_connections()
        except psutil.NoSuchProcess:
            continue
        for found in sockets:
            if found.status == psutil.CONN_LISTEN:
                yield found.laddr.ip, each.name()


def is_loopback(address: str) -> bool:
    found = ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return (mapped or found).is_loopback


def readable_by_others(path: Path, top: Path) -> bool:
    """Return whether another user can reach a file and read it."""
    if not path.lstat().st_mode & stat.S_IROTH or stat.S_ISLNK(path.lstat().st_mode):
        return False
    return all(each.stat().st_mode & stat.S_IXOTH for each in path.parents if each.is_relative_to(top))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_local_search_is_closed_to_the_network_and_to_other_users(
    ray_folder: Path, tmp_path: Path, smallest_search: dict[str, Any], workers: int
) -> None:
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray").chmod(0o755)
    (home / ".ray" / "auth_token").write_text("0" * 64)
    (home / ".ray" / "auth_token").chmod(0o644)
    mapping = {**smallest_search, "cluster": {"num_workers": workers}}
    mapping["search"] = {**smallest_search["search"], "num_trials": 4, "keep_models": "all"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(mapping))
    seen: set[tuple[str, str]] = set()
    umask = os.umask(0o022)
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "ofmu", "search", "own.yaml", "--run-dir", "run"],
            cwd=tmp_path,
            env=command(ray_folder, home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            tree = psutil.Process(process.pid)
            while process.poll() is None:
                try:
                    seen |= set(listening(tree))
                except psutil.NoSuchProcess:
                    break
                time.sleep(0.3)
            output, _ = process.communicate(timeout=60)
    finally:
        os.umask(umask)
    assert process.returncode == 0, output
    assert {"raylet", "gcs_server"} <= {name for _, name in seen}
    assert [found for found in seen if not is_loopback(found[0])] == []

    assert stat.S_IMODE((home / ".ray").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / ".ray" / "auth_token").stat().st_mode) == 0o600
    folder = ray_folder / f"ofmu-{os.getuid()}"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20, "Ray's files are elsewhere"
    assert [path for path in files if readable_by_others(path, folder)] == []
    assert stat.S_IMODE((tmp_path / "run" / "trials" / "00000" / "metrics.json").stat().st_mode) == 0o644

    written = [path for place in (ray_folder, tmp_path) for path in place.rglob("*") if path.is_file()]
    for path in written:
        content = path.read_bytes()
        assert [name for name, value in SECRETS.items() if value.encode() in content] == [], path
    assert [name for name, value in SECRETS.items() if value in output] == []


def test_a_local_ray_leaves_no_token_behind(ray_folder: Path, tmp_path: Path) -> None:
    """A token in ~/.ray would make the user's next ``ray start`` ask for it. Ray's own processes must share one."""
    program = (
        "import os, ray\n"
        "from cluster.config import ClusterConfig\n"
        "from cluster.session import ray_session\n"
        "with ray_session(ClusterConfig()):\n"
        "    seen = ray.get(ray.remote(lambda: os.environ['RAY_AUTH_TOKEN']).remote())\n"
        "    print(seen, os.environ['RAY_AUTH_MODE'])\n"
    )
    environment = {**command(ray_folder, tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    token, mode = done.stdout.split()
    assert (len(token), mode) == (64, "token")
    assert list(tmp_path.iterdir()) == []
    written = [path for path in ray_folder.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert [path for path in written if token.encode() in path.read_bytes()] == []


def test_the_ports_of_a_search_do_not_answer_from_outside(ray_folder: Path) -> None:
    """The same from the other side: nothing answers at the machine's own address."""
    address = next(
        (
            each.address
            for found in psutil.net_if_addrs().values()
            for each in found
            if each.family == socket.AF_INET and not is_loopback(each.address)
        ),
        None,
    )
    if address is None:
        pytest.skip("this machine has no address besides loopback")
    program = (
        "import ray, signal\n"
        "from cluster.config import ClusterConfig\n"
        "from cluster.session import ray_session\n"
        "with ray_session(ClusterConfig()):\n"
        "    print(ray.get_runtime_context().gcs_address, flush=True)\n"
        "    signal.pause()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        host, _, port = process.stdout.readline().strip().rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            with pytest.raises(OSError, match=r".*"):
                socket.create_connection((address, int(port)), timeout=5)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
