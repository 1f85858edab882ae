"""The copy of the driver's files to a URI, on storage that fails and with a lease that is lost."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import mirror as mirror_module
from cluster.storage.lease import Lease
from cluster.storage.mirror import Mirror
from ofmu.errors import StorageError
from tune.rundir.sync import RunDirectorySync


def opened(mirror: Mirror) -> RunDirectorySync:
    """Return a running copy whose lease notices within a tenth of a second that it is lost."""
    sync = RunDirectorySync(mirror)
    sync._lease = Lease(mirror, "search", heartbeat=0.1, timeout=2.0, confirm_delay=0.05)
    sync.open()
    return sync


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def fails(call: Callable[[], None]) -> bool:
    try:
        call()
    except StorageError:
        return True
    return False


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    """A mirror between two folders of the disk."""
    (tmp_path / "local").mkdir()
    return Mirror((tmp_path / "there").as_uri(), tmp_path / "local")


def test_changed_files_are_pushed_and_the_lease_is_free_afterwards(mirror):
    sync = opened(mirror)
    (mirror.local / "study.log").write_text("1")
    (mirror.local / "trials/00000").mkdir(parents=True)
    (mirror.local / "trials/00000/error.txt").write_text("2")
    (mirror.local / "trials/00000/scores.json").write_text("3")
    sync.mark_dirty(check=True)
    wait_until(lambda: mirror.has("study.log"))
    (mirror.local / "trials.csv").write_text("4")
    sync.close(raise_errors=True)
    assert mirror.files() == ["study.log", "trials.csv", "trials/00000/error.txt"]


@pytest.mark.parametrize(("owner", "call"), [(mirror_module, "file_signature"), (Path, "glob")])
def test_an_error_of_the_disk_ends_the_thread_and_is_reported(mirror, monkeypatch, owner, call):
    def unreadable(path: Path, *arguments: str) -> Any:
        raise OSError(errno.EIO, "Input/output error", str(path))

    sync = opened(mirror)
    (mirror.local / "study.log").write_text("1")
    monkeypatch.setattr(owner, call, unreadable)
    sync.mark_dirty(check=False)
    wait_until(lambda: fails(sync.check))
    with pytest.raises(StorageError, match=r"^Cannot write file:.*Input/output error.*local"):
        sync.mark_dirty(check=True)
    sync.close(raise_errors=False)


def test_trials_that_vanish_while_they_are_listed_do_not_end_the_thread(mirror, monkeypatch):
    listed = os.scandir

    def scandir(path: Any = ".") -> Any:
        if str(path).endswith("/trials"):
            Path(path).rename(mirror.local / "elsewhere")
        return listed(path)

    sync = opened(mirror)
    (mirror.local / "study.log").write_text("1")
    (mirror.local / "trials/00000").mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", scandir)
    sync.mark_dirty(check=True)
    wait_until((mirror.local / "elsewhere").is_dir)
    (mirror.local / "trials.csv").write_text("2")
    sync.mark_dirty(check=True)
    wait_until(lambda: mirror.has("trials.csv"))
    sync.close(raise_errors=True)
