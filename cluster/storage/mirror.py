"""A local folder and its copy at a URI. This module does not need Ray.

An object store shows a file complete or not at all, but has neither renaming nor locks. So files that mark others as
complete are uploaded after these, see :data:`COMMIT_MARKERS`. A :class:`cluster.storage.lease.Lease` takes the place
of a lock.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from cluster.storage.uri import redacted, storage_at
from ofmu.errors import StorageError
from ofmu.run_files import CONFIG, METRICS, PRUNED

COMMIT_MARKERS = (CONFIG, "search.json", PRUNED, METRICS)
"""Files whose presence says that other files are complete. They are uploaded after all others, in this order."""
_OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})
_CHUNK_BYTES = 8 * 2**20
_MAX_REASON = 200


class Mirror:
    """Copies files between a local folder and a URI.

    An upload skips files that this mirror has uploaded or downloaded before and that have not changed since. A pickled
    mirror consists of the URI and the folder.

    Raises:
        StorageError: every method raises it if the storage refuses. The message names the URI without credentials.
    """

    def __init__(self, uri: str, local: Path) -> None:
        self.uri, self.local = uri, local
        self._signatures: dict[str, tuple[int, int]] = {}
        self._storage: tuple[Any, str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Mirror, (self.uri, self.local)

    def __repr__(self) -> str:
        return f"Mirror({redacted(self.uri)!r}, {str(self.local)!r})"

    def files(self, folder: str = "") -> list[str]:
        """Return the names of all files at the URI in ``folder`` and its sub-folders, relative to the URI.

        Others may have written there, so a name that leads out of the URI, by ``..`` or by a link, raises StorageError.
        """
        from pyarrow import fs

        with self._storage_errors("read"):
            system, root = self._open()
            selector = fs.FileSelector(_join(root, folder), recursive=True, allow_not_found=True)
            found = system.get_file_info(selector)
        prefix = root.rstrip("/") + "/"
        names = sorted(info.path.removeprefix(prefix) for info in found if info.type == fs.FileType.File)
        for name in names:
            parts = PurePosixPath(name).parts
            links = system.type_name == "local" and any(
                Path(prefix, *parts[:end]).is_symlink() for end in range(1, len(parts) + 1)
            )
            if ".." in parts or name.startswith("/") or links:
                raise StorageError(f"{redacted(self.uri)} holds {name}, which leads out of it: remove it")
        return names

    def has(self, name: str) -> bool:
        """Return whether a file exists at the URI."""
        from pyarrow import fs

        with self._storage_errors("read"):
            system, root = self._open()
            return bool(system.get_file_info(_join(root, name)).type == fs.FileType.File)

    def require_bucket(self) -> None:
        """Check that the storage answers and that the bucket exists, so that a search fails at its start."""
        from pyarrow import fs

        with self._storage_errors("write"):
            system, root = self._open()
            if system.type_name in _OBJECT_STORES:
                bucket = system.get_file_info(root.split("/")[0])
                if bucket.type == fs.FileType.NotFound:
                    raise OSError("NoSuchBucket")

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a small file; None if there is no such file."""
        with self._storage_errors("read"):
            system, root = self._open()
            try:
                with system.open_input_stream(_join(root, name), compression=None) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small file at the URI."""
        with self._storage_errors("write"), self._output_stream(name) as stream:
            stream.write(data)

    def pull(self, names: Sequence[str]) -> None:
        """Download files to the folder. A killed download leaves no incomplete file under its final name."""
        for name in names:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            try:
                with self._storage_errors("read"):
                    system, root = self._open()
                    with system.open_input_stream(_join(root, name), compression=None) as stream:
                        _copy(stream, partial)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
            self._signatures[name] = file_signature(target)

    def pull_top_level(self) -> None:
        """Download the files at the URI that are in no sub-folder."""
        self.pull([name for name in self.files() if "/" not in name])

    def push(self, folder: str = "", *, without: Collection[str] = ()) -> None:
        """Upload new and changed files. :data:`COMMIT_MARKERS` are uploaded last.

        Args:
            folder: upload only what is in this sub-folder.
            without: names of files and folders to leave out, at every depth. Hidden ones are always left out.
        """
        for name in self.local_files(folder, without=without):
            self.push_file(name)

    def local_files(self, folder: str = "", *, without: Collection[str] = ()) -> list[str]:
        """Return the names of the files that :meth:`push` uploads, in its order. Files that vanish are left out."""
        names = []
        with self._storage_errors("write"):
            for parent, folders, files in os.walk(self.local / folder, onerror=_raise_unless_gone):
                folders[:] = [name for name in folders if not _is_left_out(name, without)]
                paths = [Path(parent, name) for name in files if not _is_left_out(name, without)]
                names += [path.relative_to(self.local).as_posix() for path in paths if path.is_file()]
        return sorted(names, key=_upload_order)

    def push_file(self, name: str, source: Path | None = None) -> None:
        """Upload one file if it has changed; do nothing if the file is gone.

        With ``source``, upload that file under ``name`` in any case.
        """
        path = source or self.local / name
        with self._storage_errors("write"):
            try:
                signature = file_signature(path)
                if source is None and self._signatures.get(name) == signature:
                    return
                content = path.open("rb")
            except FileNotFoundError:
                if source is None:
                    return
                raise
            with content, self._output_stream(name) as stream:
                shutil.copyfileobj(content, stream, _CHUNK_BYTES)
        self._signatures[name] = signature

    def delete(self, folder: str) -> None:
        """Delete a folder at the URI, if it exists. The local folder stays."""
        with self._storage_errors("delete"):
            system, root = self._open()
            with suppress(FileNotFoundError):
                system.delete_dir(_join(root, folder))
        prefix = f"{folder}/"
        self._signatures = {name: value for name, value in self._signatures.items() if not name.startswith(prefix)}

    def delete_file(self, name: str) -> None:
        """Delete one file at the URI, if it exists."""
        with self._storage_errors("delete"):
            system, root = self._open()
            with suppress(FileNotFoundError):
                system.delete_file(_join(root, name))

    def _open(self) -> tuple[Any, str]:
        if self._storage is None:
            self._storage = storage_at(self.uri)
        return self._storage

    @contextmanager
    def _output_stream(self, name: str) -> Iterator[Any]:
        system, root = self._open()
        path = _join(root, name)
        if system.type_name not in _OBJECT_STORES:
            # In a file system the folder must exist, and readers see a file while it is written.
            system.create_dir(str(PurePosixPath(path).parent), recursive=True)
            partial = f"{path}.{os.getpid()}.tmp"
            with system.open_output_stream(partial, compression=None) as stream:
                yield stream
            system.move(partial, path)
            return
        with system.open_output_stream(path, compression=None) as stream:
            yield stream

    @contextmanager
    def _storage_errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(storage_message(self.uri, verb, error)) from None


def storage_message(uri: str, verb: str, error: BaseException) -> str:
    """Return one sentence about an error of the storage, with the fix and without credentials."""
    text = str(error)
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text or "bucket does not exist" in text.lower():
        reason, fix = "there is no such bucket", "make the bucket, or correct its name"
    elif any(word in text for word in ("ACCESS_DENIED", "Forbidden", "SIGNATURE", "INVALID_ACCESS", "InvalidAccess")):
        reason, fix = "access is denied", "check the credentials, such as AWS_ACCESS_KEY_ID, on this node"
    elif any(word in text for word in ("NETWORK_CONNECTION", "curlCode", "connect")):
        reason, fix = "the storage does not answer", "check the endpoint and the network"
    else:
        reason, fix = _first_line(text, uri), "check the URI, the credentials and the network"
    return f"Cannot {verb} {redacted(uri)} ({reason}): {fix}"


def file_signature(path: Path) -> tuple[int, int]:
    """Return a file's size in bytes and its modification time in nanoseconds. A changed signature means a change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _raise_unless_gone(error: OSError) -> None:
    """Raise an error of listing a folder, unless the folder was deleted meanwhile."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _first_line(text: str, uri: str) -> str:
    parts = urlsplit(uri)
    line = (text.strip().splitlines() or ["unknown error"])[0].replace(uri, redacted(uri))
    for secret in (parts.username, parts.password):
        line = line.replace(secret, "…") if secret else line
    return line[:_MAX_REASON]


def _join(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}".rstrip("/") if name else root.rstrip("/")


def _upload_order(name: str) -> tuple[int, bool, str]:
    """Return a sort key that puts commit markers last. In a checkpoint the JSON files are the markers."""
    last = PurePosixPath(name).name
    return (COMMIT_MARKERS.index(last) + 1 if last in COMMIT_MARKERS else 0, last.endswith(".json"), name)


def _is_left_out(part: str, without: Collection[str]) -> bool:
    return part.startswith(".") or part in without


def _copy(stream: Any, target: Path) -> None:
    with target.open("wb") as file:
        while chunk := stream.read(_CHUNK_BYTES):
            file.write(chunk)
