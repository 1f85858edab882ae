"""A lease on a place at a URI: what stands in for a lock where the storage has none.

Its limits: two drivers that take a free lease within the same second may both hold it until the next heartbeat of
one of them, which finds the other's name and gives up. A holder that is cut off from the storage learns of it when
its lease has run out.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from cluster.storage.mirror import Mirror, shown
from ofmu.errors import RunError, StorageError

LOCK = "driver.lock"
_HELD: set[str] = set()
"""Owners of the leases that this process holds."""


class Lease:
    """Holds a URI for one process at a time, by an object that its holder writes again every few seconds.

    Who finds another's object refuses as soon as that is seen to change, takes over at once if its process has died on
    this machine, and otherwise after ``patience`` seconds without a change: no clock but this process's own counts.

    Args:
        mirror: of the URI.
        kind: what is run there, as errors say it.
        heartbeat: seconds from one write to the next.
        patience: seconds after which a silent holder is taken for dead.
        settle: seconds from writing one's name to reading it back.
    """

    def __init__(
        self, mirror: Mirror, kind: str, *, heartbeat: float = 10.0, patience: float = 60.0, settle: float = 1.0
    ) -> None:
        self._mirror, self._kind = Mirror(mirror.uri, mirror.local), kind
        self._heartbeat, self._patience, self._settle = heartbeat, patience, settle
        self._owner = uuid.uuid4().hex
        self._beats = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost: str | None = None
        """Why the lease is no longer this process's, once it is not."""

    def acquire(self) -> None:
        """Take the lease and keep it.

        Raises:
            RunError: another process holds it.
            StorageError: the storage refuses.
        """
        self._wait_for_the_holder()
        self._write()
        time.sleep(self._settle)
        if self._holder().get("owner") != self._owner:
            raise self._held()
        _HELD.add(self._owner)
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lease back, where it still is this process's."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        _HELD.discard(self._owner)
        if self.lost is None and self._holder().get("owner") == self._owner:
            self._mirror.delete_file(LOCK)

    def _wait_for_the_holder(self) -> None:
        first, since = self._holder(), time.monotonic()
        if not first or _has_died(first):
            return
        if _is_alive(first):
            raise self._held()
        while time.monotonic() - since < self._patience:
            time.sleep(min(1.0, self._heartbeat / 4))
            now = self._holder()
            if not now:
                return
            if now != first:
                raise self._held()

    def _held(self) -> RunError:
        place = shown(self._mirror.uri)
        return RunError(f"Another {self._kind} is running in {place}: wait for it, or stop it first")

    def _holder(self) -> dict[str, Any]:
        stored = self._mirror.read(LOCK)
        try:
            return dict(json.loads(stored)) if stored else {}
        except ValueError:
            return {"owner": "unreadable"}

    def _write(self) -> None:
        self._beats += 1
        here = psutil.Process()
        account = {"owner": self._owner, "beats": self._beats, "machine": _machine(), "process": here.pid}
        self._mirror.write(LOCK, json.dumps(account | {"started": here.create_time()}).encode())

    def _beat(self) -> None:
        heard = time.monotonic()
        while not self._ended.wait(self._heartbeat):
            try:
                if self._holder().get("owner") != self._owner:
                    self.lost = f"Another {self._kind} has taken over {shown(self._mirror.uri)}: let it finish"
                    return
                self._write()
                heard = time.monotonic()
            except StorageError as error:
                if time.monotonic() - heard > self._patience:
                    self.lost = str(error)
                    return


def _machine() -> str:
    """Return a name that no other running machine or container has."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot.read_text().strip() if boot.is_file() else ''}"


def _is_alive(holder: dict[str, Any]) -> bool:
    return holder.get("machine") == _machine() and _runs(holder)


def _has_died(holder: dict[str, Any]) -> bool:
    return holder.get("machine") == _machine() and not _runs(holder)


def _runs(holder: dict[str, Any]) -> bool:
    if holder.get("process") == os.getpid():
        return bool(holder.get("owner") in _HELD)
    try:
        started = psutil.Process(int(holder["process"])).create_time()
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return False
    return bool(abs(started - float(holder.get("started", 0))) < 1)
