"""One process at a time in a directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ofmu.errors import RunError
from ofmu.io.files import storage_errors

LOCK = ".lock"
"""The name of a directory's lock."""


@contextmanager
def locked(directory: Path, sentence: str, *, timeout: float = 0.0, remove_unused: bool = False) -> Iterator[None]:
    """Hold the lock of a directory, which is made if it is missing. The lock ends with the process.

    Args:
        directory: the directory.
        sentence: the error, if another process holds the lock.
        timeout: seconds to wait for another process.
        remove_unused: whether the lock, and the folders that were made for it, are removed at the end if nothing else
            was written to the directory.

    Raises:
        RunError: another process holds the lock.
        StorageError: the directory cannot be written.
    """
    lock = FileLock(directory / LOCK)
    with storage_errors(directory):
        made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
        was_empty = bool(made) or not any(directory.iterdir())
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            raise RunError(sentence) from None
        except NotImplementedError:
            pass  # a file system without locks
    try:
        yield
    finally:
        if was_empty and remove_unused:
            _remove_if_unused(directory, made)
        lock.release()


def _remove_if_unused(directory: Path, made: Sequence[Path]) -> None:
    """Remove a lock that is alone in its directory, then the folders ``made``, from the inmost to the outmost."""
    with suppress(OSError):
        if [path.name for path in directory.iterdir()] == [LOCK]:
            (directory / LOCK).unlink()
            for folder in made:
                folder.rmdir()  # fails if another process has written there meanwhile
