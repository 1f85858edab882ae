"""What a command says of a disk that became full under it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ofmu.errors import StorageError
from ofmu.io.files import FULL_DISK_FIX


@contextmanager
def after_full_disk(then: Callable[[], str]) -> Iterator[None]:
    """Add to the error of a full disk in the block what the same command does once there is space.

    Args:
        then: returns the rest of the sentence, such as ``the same command continues``. It is called after the error.
    """
    try:
        yield
    except StorageError as error:
        if FULL_DISK_FIX not in str(error):
            raise
        raise StorageError(f"{error}; then {then()}") from error
