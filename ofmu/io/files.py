"""Atomic writes: a reader sees the old file or the new file, never a part of one."""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ofmu.errors import DataError, StorageError
from ofmu.io.text import parse_json

MAX_JSON_BYTES = 2 * 2**30
"""Bound on a JSON file. Scores of a large benchmark have hundreds of MiB."""

_NEAR = 0.8
"""How like two names must be for one to be offered in place of the other: 1 for equal names."""
_MAX_NAMES = 10_000
"""Bound on the names of a folder that are compared."""
LOOKED_FOR = "looked for at"
"""These words precede the full path in a message about a relative path at which nothing is."""
FULL_DISK_FIX = "free some space there"
"""What the user can do about a full disk. The sentence of a StorageError holds this text."""
_FIXES = {
    errno.ENOSPC: FULL_DISK_FIX,
    errno.EDQUOT: FULL_DISK_FIX,
    errno.EROFS: "choose a directory that can be written, since this file system is read-only",
    errno.ENOENT: "choose a directory that can be made, or restore the one that was deleted or moved",
    errno.ESTALE: "mount the storage again",
}
"""What the user can do about a failed write, by the system's error number."""
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust, such as tokenizers, report an error of the system. They raise it as a plain Exception."""
_SYNC_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP)
"""Errors of a file system that cannot sync directories."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failed write inside the ``with`` block into one sentence that names the file.

    Raises:
        StorageError: the block raised OSError, or the error of a library in Rust for a failed write.
    """
    from safetensors import SafetensorError

    try:
        yield
    except StorageError:
        raise  # a block inside this one named the file
    except Exception as error:
        # Libraries in Rust raise errors of the system as Exception itself.
        if not isinstance(error, OSError | SafetensorError) and not _RUST_ERROR.search(str(error)):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"Cannot write {path} ({reason}): {storage_fix(error)}") from error


def storage_fix(error: Exception) -> str:
    """Return what the user can do about a failed write."""
    found = _RUST_ERROR.search(str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    if number is None and "No space left" in str(error):
        return FULL_DISK_FIX
    return _FIXES.get(number or 0, "choose a directory that can be written")


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a text file as :func:`write_bytes` does.

    Raises:
        StorageError: the disk is full or read-only.
    """
    write_bytes(path, text.encode(), private=private)


def write_bytes(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file atomically, and sync it to disk. Missing directories are made.

    The bytes go to a new temporary file in the same directory, which then gets the name ``path``. A link of that name
    is replaced, and not followed.

    Args:
        path: the file.
        data: its content.
        private: whether only the owner may read the file. Otherwise the umask says who may.

    Raises:
        StorageError: the disk is full or read-only.
    """
    temporary, mode = path.with_name(f".{path.name}.{os.getpid()}.tmp"), 0o600 if private else 0o666
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.unlink(missing_ok=True)
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    """Write a JSON file as :func:`write_bytes` does.

    Raises:
        StorageError: the disk is full or read-only.
        ValueError: ``value`` holds NaN or an infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", private=private)


def sync(path: Path) -> None:
    """Flush the bytes of a file, or the names in a directory, to disk. Return when they are there.

    Raises:
        OSError: the disk reports an error.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _SYNC_UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def check_regular(path: Path, max_bytes: int | None = None) -> None:
    """Check that a path leads to an ordinary file. A pipe could block for ever, and a device may never end.

    Raises:
        OSError: there is no file, the path is a directory, a pipe or a device, or the file has more than ``max_bytes``.
            ``strerror`` says which.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and only ordinary files are read", str(path))
    if max_bytes is not None and status.st_size > max_bytes:
        size = f"it has {status.st_size / 2**20:,.1f} MiB, and at most {max_bytes / 2**20:,.0f} MiB are read"
        raise OSError(errno.EFBIG, size, str(path))


def expanded(path: str | Path) -> Path:
    """Return a path with the home directory in place of ``~``. ``~name`` of an unknown user stays as it is.

    :meth:`pathlib.Path.expanduser` would raise for an unknown user.
    """
    return Path(os.path.expanduser(path))


def looked_for(path: str | Path) -> str:
    """Return the name of a missing file for a message.

    A relative name is followed by the full path that was tried. If a file or a folder there has nearly the same name,
    that name follows.
    """
    given = expanded(path)
    near = _near_file(given)
    notes = [] if given.is_absolute() else [f"{LOOKED_FOR} {given.absolute()}"]
    notes += [] if near is None else [f"did you mean '{near}'?"]
    return f"{path} ({'; '.join(notes)})" if notes else str(path)


def _near_file(missing: Path) -> Path | None:
    """Return the path that a missing path may stand for: the part that is missing has the nearest name in its folder.

    None: no name is near, or the path is there.
    """
    try:
        if os.path.lexists(missing):
            return None
        part = missing
        while not part.parent.is_dir():
            part = part.parent
        with os.scandir(part.parent) as entries:
            names = [entry.name for entry in islice(entries, _MAX_NAMES) if not entry.name.startswith(".")]
    except (OSError, ValueError):
        return None
    close = difflib.get_close_matches(part.name, names, n=1, cutoff=_NEAR)
    if not close:
        return None
    found = part.parent / close[0]
    whole = found / missing.relative_to(part)
    return whole if whole.exists() else found


def file_hash(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class FileHashes:
    """SHA-256 (hex) of files, each of which is read once. A file that changed is read again.

    A file counts as the same while its device, inode, size and times of change are the same, also under another name.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    def __call__(self, path: Path) -> str:
        """Return the hash of a file's bytes."""
        stat = path.stat()
        key = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        if key not in self._known:
            self._known[key] = file_hash(path)
        return self._known[key]


def read_json(path: str | Path) -> Any:
    """Read a JSON file of at most :data:`MAX_JSON_BYTES`.

    Raises:
        DataError: the file is missing, unreadable, too large, or not JSON.
    """
    try:
        check_regular(Path(path), MAX_JSON_BYTES)
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}; check the name") from error
    except ValueError as error:
        raise DataError(f"The file {path} is not valid JSON ({error}): make it again") from error
