"""A real HTTP server that speaks S3, for tests: moto's, from this environment or one of its own.

moto's client library wants an older python-dateutil than the pinned one, so it may have to live in an environment
apart, whose ``moto_server`` is named by $OFMU_TEST_S3_SERVER.
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

KEYS = {"AWS_ACCESS_KEY_ID": "AKIATESTKEY", "AWS_SECRET_ACCESS_KEY": "hushhush", "AWS_EC2_METADATA_DISABLED": "true"}


def server_command() -> str:
    """Return the path of ``moto_server``; skips the test where there is none."""
    beside = Path(sys.executable).with_name("moto_server")
    found = os.environ.get("OFMU_TEST_S3_SERVER")
    if not found and not beside.exists():
        pytest.skip("no moto_server: install 'moto[s3]' flask flask-cors, and name it by $OFMU_TEST_S3_SERVER")
    return found or str(beside)


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Run the server on a free port with one empty bucket, ``bucket``; yield the options of a URI that leads there."""
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
        from pyarrow import fs

        fs.FileSystem.from_uri(f"s3://bucket?{options}&allow_bucket_creation=true")[0].create_dir("bucket")
        yield options
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
