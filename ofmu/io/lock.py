"""One process at a time in a directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ofmu.errors import RunError
from ofmu.io.files import storage_errors

LOCK = ".lock"


@contextmanager
def locked(directory: Path, sentence: str) -> Iterator[None]:
    """Hold the lock of a directory, which is made if it is missing. The lock ends with the process.

    A directory that was made for the lock is removed at the end if nothing else was written to it.

    Args:
        directory: the directory.
        sentence: the error, if another process holds the lock.

    Raises:
        RunError: another process holds the lock.
        StorageError: the directory cannot be written.
    """
    lock, is_new = FileLock(directory / LOCK), not directory.exists()
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(sentence) from None
        except NotImplementedError:
            pass  # a file system without locks
    try:
        yield
    finally:
        if is_new:
            _remove_if_unused(directory)
        lock.release()


def _remove_if_unused(directory: Path) -> None:
    with suppress(OSError):
        if [path.name for path in directory.iterdir()] == [LOCK]:
            (directory / LOCK).unlink()
            directory.rmdir()
