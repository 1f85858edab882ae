"""Writing files so that a reader sees the old one or the new one, never half of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ofmu.errors import DataError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""What a file system says that knows no syncing of directories."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failed write into one sentence that names the file.

    Raises:
        StorageError: in place of OSError, and of the error that safetensors raises when a write fails.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        full = getattr(error, "errno", None) in _FULL or "No space left" in reason
        mend = "free some space there" if full else "choose a place that can be written"
        raise StorageError(f"Cannot write {path} ({reason}): {mend}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file by way of a temporary neighbour, synced to disk before it takes the name, and the name too.

    Raises:
        StorageError: the disk is full or read-only.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as :func:`write_text` does; NaN is refused, since other readers of JSON refuse it.

    Raises:
        StorageError: the disk is full or read-only.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Have the bytes of a file, or the names in a directory, on disk before anything else happens.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing, unreadable, or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}; check the name") from error
    except ValueError as error:
        raise DataError(f"The file {path} is not valid JSON ({error}): make it again") from error
