"""A real HTTP server that speaks S3, for tests: moto's server.

moto needs an older python-dateutil than the pinned one. So the server may be installed in another environment;
$OFMU_TEST_S3_SERVER then names its ``moto_server``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyarrow import fs

KEYS = {"AWS_ACCESS_KEY_ID": "AKIATESTKEY", "AWS_SECRET_ACCESS_KEY": "hushhush", "AWS_EC2_METADATA_DISABLED": "true"}


def server_command() -> str:
    """Return the path of ``moto_server``. Skip the test if there is none."""
    beside = Path(sys.executable).with_name("moto_server")
    found = os.environ.get("OFMU_TEST_S3_SERVER")
    if not found and not beside.exists():
        pytest.skip("no moto_server: install 'moto[s3]' flask flask-cors, and set $OFMU_TEST_S3_SERVER to its path")
    return found or str(beside)


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Run the server on a free port with one empty bucket, ``bucket``. Yield the options of URIs that lead to it."""
    command = server_command()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen([command, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    before = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(KEYS)
    try:
        deadline = time.monotonic() + 100
        while not _answers(port):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        fs.FileSystem.from_uri(f"s3://bucket?{options}&allow_bucket_creation=true")[0].create_dir("bucket")
        yield options
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def stored_files(uri: str) -> dict[str, bytes]:
    """Return the content of all files at the URI, by their names relative to the URI."""
    system, root = fs.FileSystem.from_uri(uri)
    found = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    paths = [info.path for info in found if info.type == fs.FileType.File]
    return {path[len(root) + 1 :]: system.open_input_stream(path, compression=None).read() for path in paths}


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
