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


class OvertakenMirror(Mirror):
    """A mirror at whose URI another search takes the lease during the upload of one file."""

    sync: RunDirectorySync
    overtaken_at: str | None = None

    def _output_stream(self, name: str) -> Any:
        if name == self.overtaken_at:
            overtake(self, self.sync)
        return super()._output_stream(name)


def overtake(mirror: Mirror, sync: RunDirectorySync) -> None:
    """Let another search take the lease, and wait until the first holder knows."""

    def is_lost() -> bool:
        # A heartbeat that has read its own record already overwrites the other record, so it is written again.
        (there(mirror) / "driver.lock").write_text('{"owner": "other"}')
        return sync._lease.lost is not None

    wait_until(is_lost)


def there(mirror: Mirror) -> Path:
    return mirror.local.parent / "there"


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("by_thread", [True, False])
def test_nothing_is_pushed_or_deleted_once_the_lease_is_lost(mirror, by_thread):
    sync = opened(mirror)
    overtake(mirror, sync)
    write(there(mirror), trials__00000__model__w="kept")
    (there(mirror) / "study.log").write_text("new")
    (mirror.local / "study.log").write_text("old")
    sync.delete("trials/00000/model")
    if by_thread:
        wait_until(lambda: not sync._thread.is_alive())
    with pytest.raises(StorageError, match="Another search has taken over"):
        sync.check()
    sync.close(raise_errors=False)
    assert (there(mirror) / "study.log").read_text() == "new"
    assert mirror.files() == ["driver.lock", "study.log", "trials/00000/model/w"]


@pytest.mark.parametrize(
    ("file", "pushed"),
    [
        ("study.log", ["study.log"]),
        ("front.csv", ["study.log", "front.csv"]),
        ("trials.csv", ["study.log", "front.csv", "trials.csv"]),
    ],
)
def test_a_push_ends_as_soon_as_the_lease_is_lost(tmp_path, file, pushed):
    mirror = OvertakenMirror((tmp_path / "there").as_uri(), tmp_path / "local")
    write(there(mirror), trials__00000__model__w="kept")
    mirror.sync = sync = opened(mirror)
    mirror.overtaken_at = file
    for name in ("study.log", "front.csv", "trials.csv"):
        (mirror.local / name).write_text("1")
    sync.delete("trials/00000/model")
    sync.close(raise_errors=False)
    assert mirror.files() == sorted(["driver.lock", "trials/00000/model/w", *pushed])


class FailingMirror(Mirror):
    """A mirror whose storage takes no file while it is full."""

    full = False

    def push_file(self, name: str, source: Path | None = None) -> None:
        if self.full:
            raise StorageError("the storage is full")
        super().push_file(name, source)


@pytest.mark.parametrize("raise_errors", [True, False])
@pytest.mark.parametrize("by_thread", [True, False])
def test_after_an_error_of_the_storage_the_search_can_be_resumed_in_this_process(tmp_path, raise_errors, by_thread):
    mirror = FailingMirror((tmp_path / "there").as_uri(), tmp_path / "local")
    sync = opened(mirror)
    (mirror.local / "study.log").write_text("1")
    mirror.full = True
    if by_thread:
        sync.mark_dirty(check=False)
        wait_until(lambda: fails(sync.check))
    assert fails(lambda: sync.close(raise_errors=raise_errors)) == raise_errors
    assert not mirror.has("driver.lock")
    mirror.full = False
    opened(mirror).close(raise_errors=True)


@pytest.mark.parametrize("raise_errors", [True, False])
def test_a_lease_that_was_lost_to_silent_storage_is_free_in_this_process(mirror, raise_errors):
    sync = opened(mirror)
    sync._lease.lost = "the storage does not answer"
    assert fails(lambda: sync.close(raise_errors=raise_errors)) == raise_errors
    opened(mirror).close(raise_errors=True)


def test_the_lease_of_another_search_is_not_released(mirror):
    sync = opened(mirror)
    overtake(mirror, sync)
    with pytest.raises(StorageError, match="taken over"):
        sync.close(raise_errors=True)
    assert mirror.read("driver.lock") == b'{"owner": "other"}'
