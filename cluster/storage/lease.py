"""A lease on a URI, for storage that has no locks.

Two limits remain. Two processes that take a free lease within the same second may both hold the lease until the next
heartbeat, when one of them finds the other's record and gives up. And a holder that loses its connection to the
storage learns that it lost the lease only after ``timeout`` seconds.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from cluster.storage.mirror import Mirror
from cluster.storage.uri import redacted
from ofmu.errors import RunError, StorageError

LOCK = "driver.lock"
"""Name of the lease object at the URI."""
_POLL_SECONDS = 1.0
_HELD: set[str] = set()
"""Owners of the leases that this process holds."""


@dataclass(frozen=True)
class LeaseRecord:
    """The content of the lease object. Every heartbeat writes a new record."""

    owner: str
    """A random name of the lease that wrote the record."""
    beats: int = 0
    """Number of the heartbeat, so that every record differs from the one before."""
    machine: str = ""
    process: int = -1
    """Process id on ``machine``."""
    started: float = 0.0
    """Start of the process, in Unix seconds. Process ids are reused; this time tells two processes apart."""

    @classmethod
    def parse(cls, stored: bytes) -> LeaseRecord:
        """Return the stored record. Content that is no record counts as the record of an unknown owner."""
        try:
            values = json.loads(stored)
            return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
        except (ValueError, TypeError):
            return cls(owner="unreadable")

    def to_bytes(self) -> bytes:
        """Return the record as JSON."""
        return json.dumps(asdict(self)).encode()

    def is_on_this_machine(self) -> bool:
        """Return whether the owner runs, or ran, on this machine."""
        return self.machine == _machine()

    def is_running(self) -> bool:
        """Return whether the owner still runs, for a record of this machine."""
        if self.process == os.getpid():
            return self.owner in _HELD
        try:
            started: float = psutil.Process(self.process).create_time()
        except (psutil.NoSuchProcess, ValueError):
            return False
        return abs(started - self.started) < 1


class Lease:
    """Holds a URI for one process at a time. The holder rewrites a lease object at the URI every few seconds.

    If another process's lease object exists, acquiring fails when the object changes, succeeds at once when its owner
    is dead on this machine, and succeeds after ``timeout`` seconds without a change. Only the local clock is used.

    Args:
        mirror: the URI.
        kind: what runs at the URI, for error messages.
        heartbeat: seconds between two writes.
        timeout: seconds after which a holder that does not write counts as dead.
        confirm_delay: seconds between writing the first record and reading the record back.
    """

    def __init__(
        self, mirror: Mirror, kind: str, *, heartbeat: float = 10.0, timeout: float = 60.0, confirm_delay: float = 1.0
    ) -> None:
        self._mirror, self._kind = Mirror(mirror.uri, mirror.local), kind
        self._heartbeat, self._timeout, self._confirm_delay = heartbeat, timeout, confirm_delay
        self._owner = uuid.uuid4().hex
        self._beats = 0
        self._released = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost: str | None = None
        """Why this process no longer holds the lease; None while it does."""

    def acquire(self) -> None:
        """Take the lease and start the heartbeat.

        Raises:
            RunError: another process holds the lease.
            StorageError: the storage refuses.
        """
        self._wait_for_holder()
        self._write()
        time.sleep(self._confirm_delay)
        if not self._is_owner():
            raise self._held_error()
        _HELD.add(self._owner)
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Stop the heartbeat. Delete the lease object if it still is this process's."""
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        _HELD.discard(self._owner)
        if self.lost is None and self._is_owner():
            self._mirror.delete_file(LOCK)

    def _wait_for_holder(self) -> None:
        first, since = self._record(), time.monotonic()
        if first is None:
            return
        if first.is_on_this_machine():
            if first.is_running():
                raise self._held_error()
            return
        while time.monotonic() - since < self._timeout:
            time.sleep(min(_POLL_SECONDS, self._heartbeat / 4))
            now = self._record()
            if now is None:
                return
            if now != first:
                raise self._held_error()

    def _held_error(self) -> RunError:
        place = redacted(self._mirror.uri)
        return RunError(f"Another {self._kind} is running in {place}: wait for it, or stop it first")

    def _record(self) -> LeaseRecord | None:
        stored = self._mirror.read(LOCK)
        return LeaseRecord.parse(stored) if stored else None

    def _is_owner(self) -> bool:
        record = self._record()
        return record is not None and record.owner == self._owner

    def _write(self) -> None:
        self._beats += 1
        here = psutil.Process()
        record = LeaseRecord(self._owner, self._beats, _machine(), here.pid, here.create_time())
        self._mirror.write(LOCK, record.to_bytes())

    def _beat(self) -> None:
        written = time.monotonic()
        while not self._released.wait(self._heartbeat):
            try:
                if not self._is_owner():
                    self.lost = f"Another {self._kind} has taken over {redacted(self._mirror.uri)}: let it finish"
                    return
                self._write()
                written = time.monotonic()
            except StorageError as error:
                if time.monotonic() - written > self._timeout:
                    self.lost = str(error)
                    return


def _machine() -> str:
    """Return a name that no other running machine or container has."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot.read_text().strip() if boot.is_file() else ''}"
