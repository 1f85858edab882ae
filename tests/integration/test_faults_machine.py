"""Searches whose disk becomes full or read-only, or whose clock is set back, in mid-run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodes import TRIALS, Nodes, Search, assert_nothing_lost, kill_all, start, wait_until

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(1200)]

CLOCK = """
import os, time
real = time.time
time.time = lambda: real() - 86400.0 * os.path.exists({flag!r})
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a file system of a limited size")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(file: Path) -> None:
    """Fill the file system completely."""
    with file.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            pass


@pytest.fixture
def frail_disk(tmp_path: Path) -> Iterator[FrailDisk]:
    """A file system of 48 MiB that becomes read-only after an error."""
    disk = FrailDisk(tmp_path)
    if not disk.mount():
        pytest.skip("only root can make and mount an ext4 file system in a file")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.place)], check=True)


class FrailDisk:
    """An ext4 file system in a file."""

    def __init__(self, folder: Path) -> None:
        self._image, self.place = folder / "image", folder / "disk"
        self.place.mkdir()
        with self._image.open("wb") as stream:
            stream.truncate(48 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self._image)], check=False)

    def mount(self) -> bool:
        """Mount the file system. Return whether this was possible."""
        command = ["mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.place)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def fail(self) -> None:
        """Make the kernel report an error of the file system. Every later write is refused."""
        lines = Path("/proc/mounts").read_text().splitlines()
        device = next(line.split()[0] for line in lines if line.split()[1] == str(self.place))
        (Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error").write_text("test")

    def repair(self) -> None:
        """Check the file system, and mount it again."""
        unmounted = lambda: subprocess.run(["umount", str(self.place)], capture_output=True).returncode == 0  # noqa: E731
        wait_until(unmounted, "the end of all processes that hold its files open", seconds=60)
        assert subprocess.run(["fsck.ext4", "-p", "-f", str(self._image)], capture_output=True).returncode < 4
        assert self.mount()


def assert_stopped_by_the_disk(search: Search) -> None:
    """Check that the search has ended with one sentence that says how to resume."""
    assert search.process.wait(timeout=240) == 1
    output = search.output()
    assert "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert last.startswith("StorageError: ")
    assert f"--resume {search.run_dir}" in last


def test_a_disk_that_fills_up_stops_the_search_and_a_resume_loses_nothing(
    ray_folder: Path, slow_search: dict[str, Any], small_disk: Path
) -> None:
    nodes = Nodes(ray_folder, workers=2)
    search = start(nodes, small_disk / "run", slow_search, beside=small_disk.parent / "run")
    try:
        wait_until(lambda: search.complete() >= 1 and search.at_work(4), "a complete trial", alive=search)
        fill(small_disk / "filler")
        assert_stopped_by_the_disk(search)
        (small_disk / "filler").unlink()
        again = start(nodes, search.run_dir, None, beside=small_disk.parent / "run")
        again.wait()
        # Both running trials lose the round whose checkpoint did not fit on the disk.
        assert_nothing_lost(again, TRIALS, repeats=2)
    finally:
        kill_all([search])
        nodes.close()


def test_a_disk_that_turns_read_only_stops_the_search_and_a_resume_loses_nothing(
    ray_folder: Path, slow_search: dict[str, Any], frail_disk: FrailDisk
) -> None:
    """Data that was only in the page cache is lost, as in a crash of the machine."""
    beside = frail_disk.place.parent / "run"
    nodes = Nodes(ray_folder, workers=2)
    search = start(nodes, frail_disk.place / "run", slow_search, beside=beside)
    try:
        wait_until(lambda: search.complete() >= 1 and search.at_work(4), "a complete trial", alive=search)
        frail_disk.fail()
        assert_stopped_by_the_disk(search)
        nodes.close()  # its processes have open files on the disk
        frail_disk.repair()
        nodes = Nodes(ray_folder, workers=2)
        again = start(nodes, search.run_dir, None, beside=beside)
        again.wait()
        assert_nothing_lost(again, TRIALS, repeats=2)
    finally:
        kill_all([search])
        nodes.close()


def test_a_clock_that_is_set_back_changes_nothing(
    ray_folder: Path, slow_search: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of every Python process of the cluster and the search jumps back by one day."""
    flag = tmp_path / "yesterday"
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK.format(flag=str(flag)))
    path = os.pathsep.join(part for part in (str(tmp_path / "clock"), os.environ.get("PYTHONPATH")) if part)
    monkeypatch.setenv("PYTHONPATH", path)
    nodes = Nodes(ray_folder, workers=2)
    search = start(nodes, tmp_path / "run", slow_search)
    try:
        wait_until(lambda: search.complete() >= 1 and search.at_work(4), "a complete trial", alive=search)
        flag.touch()
        search.wait()
    finally:
        kill_all([search])
        nodes.close()
    assert_nothing_lost(search, TRIALS, repeats=0)
    for history in search.run_dir.glob("trials/*/history.jsonl"):
        seconds = [json.loads(line)["seconds"] for line in history.read_text().splitlines()]
        assert seconds == sorted(seconds)
        assert all(0 < found < 3600 for found in seconds)
    assert 0 < json.loads((search.run_dir / "search.json").read_text())["seconds"] < 3600
