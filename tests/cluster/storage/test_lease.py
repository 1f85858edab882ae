"""Leases on a real server that speaks S3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.storage.lease import LOCK, Lease, LeaseRecord
from cluster.storage.mirror import Mirror
from ofmu.errors import RunError
from s3_server import stored_files

pytestmark = pytest.mark.timeout(300)


def lease(uri: str, folder: Path, **seconds: float) -> Lease:
    return Lease(Mirror(uri, folder), "search", **{"heartbeat": 0.2, "timeout": 2.0, "confirm_delay": 0.05, **seconds})


def test_a_lease_has_one_holder_and_is_free_after_its_release(s3_uri, tmp_path):
    first = lease(s3_uri, tmp_path)
    first.acquire()
    with pytest.raises(RunError, match=r"Another search is running in s3://bucket/"):
        lease(s3_uri, tmp_path).acquire()
    assert first.lost is None
    first.release()
    assert LOCK not in stored_files(s3_uri)
    second = lease(s3_uri, tmp_path)
    second.acquire()
    second.release()


@pytest.mark.slow
def test_a_silent_holder_elsewhere_times_out_and_a_dead_holder_here_is_replaced_at_once(s3_uri, tmp_path):
    mirror = Mirror(s3_uri, tmp_path)
    mirror.write(LOCK, json.dumps({"owner": "x", "beats": 3, "machine": "elsewhere", "process": 1}).encode())
    after = lease(s3_uri, tmp_path)
    after.acquire()
    record = json.loads(stored_files(s3_uri)[LOCK])
    after.release()
    dead = record | {"owner": "y", "process": 2**22 - 1}
    mirror.write(LOCK, json.dumps(dead).encode())
    now = lease(s3_uri, tmp_path, timeout=10_000)
    now.acquire()
    now.release()


def test_a_holder_that_finds_another_record_gives_up(s3_uri, tmp_path):
    mine = lease(s3_uri, tmp_path)
    mine.acquire()
    Mirror(s3_uri, tmp_path).write(LOCK, b'{"owner": "other"}')
    assert mine._thread is not None
    mine._thread.join(timeout=60)
    assert "taken over" in str(mine.lost)
    mine.release()
    assert json.loads(stored_files(s3_uri)[LOCK]) == {"owner": "other"}


def test_a_record_survives_storage_and_damaged_content_is_an_unknown_owner():
    record = LeaseRecord("a", beats=2, machine="m", process=7, started=1.5)
    assert LeaseRecord.parse(record.to_bytes()) == record
    for damaged in (b"", b"{", b"[1]", b"{}", b"null"):
        assert LeaseRecord.parse(damaged).owner == "unreadable"
