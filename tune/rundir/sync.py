"""Synchronise a run directory with a URI: the driver's files, and the files of each trial."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cluster.storage.lease import LOCK, Lease
from cluster.storage.mirror import Mirror, storage_message
from ofmu.errors import StorageError
from ofmu.io.cache import cache_root
from tune.rundir.search_files import STUDY, TRIALS, TUNE_STORAGE
from tune.rundir.trial_files import END_MARKERS, ERROR, LARGE_FOLDERS

_NOT_PUSHED = (TRIALS, TUNE_STORAGE, STUDY, f"{STUDY}.lock")
"""What a push of the whole directory leaves out. The study is pushed first, by itself. A dashboard that writes to the
study locks the file."""
_MIN_PAUSE = 1.0
"""Seconds between the end of one push of the driver's files and the start of the next."""


def local_folder(uri: str, use: str) -> Path:
    """Return this machine's folder, inside the cache, for one use of the run at ``uri``."""
    key = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]
    return cache_root(None) / "remote" / key / use


class RunDirectorySync:
    """Copies the driver's files to a URI in a thread, so that the search never waits for a copy.

    The process holds the URI's lease between :meth:`open` and :meth:`close`.
    """

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._lease = Lease(mirror, "search")
        self._wake, self._closing = threading.Event(), threading.Event()
        self._error: StorageError | None = None
        self._to_delete: set[str] = set()
        self._deleted: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="push to storage", daemon=True)

    def open(self) -> None:
        """Acquire the lease, replace the working copy by the files at the URI, and start the thread.

        Raises:
            RunError: another search holds the lease.
            StorageError: the storage refuses.
        """
        self._lease.acquire()
        try:
            self._fetch()
        except BaseException:
            self._lease.release()
            raise
        self._thread.start()

    def close(self, *, raise_errors: bool) -> None:
        """Stop the thread, push the remaining changes, and release the lease.

        Args:
            raise_errors: False ignores the storage's errors, so that they do not hide the error that ends the search.

        Raises:
            StorageError: with ``raise_errors``, the storage refuses, or another search has taken the lease.
        """
        self._closing.set()
        self._wake.set()
        self._thread.join()
        try:
            try:
                if raise_errors:
                    self.check()
                self._push()
            finally:
                # A lease that is held until the process ends would refuse every resume in this process.
                self._lease.release()
        except StorageError:
            if raise_errors:
                raise

    def mark_dirty(self, *, check: bool) -> None:
        """Record that files changed; with ``check``, raise StorageError as :meth:`check` does."""
        self._wake.set()
        if check:
            self.check()

    def check(self) -> None:
        """Raise the error of the thread.

        Raises:
            StorageError: a push failed, or another search has taken the lease.
        """
        if self._error is not None:
            raise self._error
        self._check_lease()

    def delete(self, folder: str) -> None:
        """Record that the folder at the URI must be deleted."""
        if folder not in self._deleted:
            self._deleted.add(folder)
            self._to_delete.add(folder)
            self._wake.set()

    def fetch_trial(self, name: str) -> None:
        """Download the files of a trial that ran on another node, without its large folders."""
        files = self._mirror.files(f"{TRIALS}/{name}")
        self._mirror.pull([each for each in files if not set(LARGE_FOLDERS) & set(_parts(each))])

    def _fetch(self) -> None:
        delete_visible_files(self._mirror.local)
        names = self._mirror.files()
        self._mirror.pull([each for each in names if "/" not in each and each != LOCK])
        ended = {_parts(each)[1] for each in names if each.endswith(tuple(f"/{name}" for name in END_MARKERS))}
        present = {"/".join(_parts(each)[:3]) for each in names if each.startswith(f"{TRIALS}/")}
        # Without this, resuming a search of thousands of trials would delete again what was deleted long ago.
        self._deleted = {f"{TRIALS}/{trial}/{name}" for trial in ended for name in LARGE_FOLDERS} - present
        (self._mirror.local / TRIALS).mkdir(parents=True, exist_ok=True)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._wake.clear()
            started = time.monotonic()
            try:
                self._push()
            except StorageError as error:
                self._error = error
                return
            # Copying a study of ten thousand trials takes long. The pause limits copying to a fifth of the time.
            self._closing.wait(max(_MIN_PAUSE, 4 * (time.monotonic() - started)))

    def _push(self) -> None:
        """Push the study, then the tables that were made from the study, then crash texts; then delete folders.

        Raises:
            StorageError: the storage refuses, a file on the disk cannot be read, or another search has taken the lease.
        """
        try:
            if not self._mirror.local.is_dir():
                return
            for name in self._names():
                self._check_lease()
                self._mirror.push_file(name)
            while self._to_delete:
                self._check_lease()
                self._mirror.delete(self._to_delete.pop())
        except OSError as error:
            raise StorageError(storage_message(self._mirror.uri, "write", error)) from error

    def _check_lease(self) -> None:
        # The files at the URI may be another search's by now, also while a push is under way.
        if self._lease.lost is not None:
            raise StorageError(self._lease.lost)

    def _names(self) -> Iterator[str]:
        """Yield the names of the files to push, in their order. What follows the study is listed after its push."""
        local = self._mirror.local
        yield STUDY
        yield from self._mirror.local_files(without=_NOT_PUSHED)
        with suppress(FileNotFoundError):
            for path in local.glob(f"{TRIALS}/*/{ERROR}"):
                yield path.relative_to(local).as_posix()


def delete_visible_files(folder: Path) -> None:
    """Delete everything in the folder but hidden files. The lock of the process that works here is a hidden file."""
    for path in folder.glob("[!.]*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _parts(name: str) -> tuple[str, ...]:
    return tuple(name.split("/"))
