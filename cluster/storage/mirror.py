"""Files on storage that is reached by a URI (s3://, gs://, hdfs:// and whatever else pyarrow knows), without Ray.

An object store shows a file whole or not at all, but knows neither renaming nor locks. So what vouches for other
files is written after them, see :data:`VOUCHERS`, and a :class:`cluster.storage.lease.Lease` stands in for a lock.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from ofmu.errors import StorageError

VOUCHERS = ("config.yaml", "search.json", "pruned.json", "metrics.json")
"""Files whose presence says that others are whole, in the order in which they are written, after all others."""
_HARMLESS = frozenset({"endpoint_override", "scheme", "region", "allow_bucket_creation", "tls_verify_certificates"})
_OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})
_CHUNK = 8 * 2**20


def is_uri(place: str | os.PathLike[str]) -> bool:
    """Return whether a run directory is named by a URI, not by a path."""
    return "://" in str(place)


def storage_at(place: str) -> tuple[Any, str]:
    """Return the file system of a path or URI (s3://, gs://, hdfs://) and the path in it.

    Raises:
        OSError: the storage does not answer.
        ValueError: the URI has an unknown scheme.
    """
    from pyarrow import fs

    if is_uri(place):
        try:
            system, path = fs.FileSystem.from_uri(place)
        except ValueError as error:
            raise ValueError(str(error).replace(place, shown(place))) from None
        return system, path
    return fs.LocalFileSystem(), str(Path(place).expanduser().absolute())


def below(place: str, name: str) -> str:
    """Return the path or URI of ``name`` in ``place``; a URI keeps its options (``?endpoint_override=...``)."""
    path, mark, options = place.partition("?") if is_uri(place) else (place, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def shown(place: str) -> str:
    """Return the path, or the URI without the keys and options that it may hold."""
    if not is_uri(place):
        return place
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def without_keys(place: str) -> str:
    """Return the path, or the URI with those options that cannot be secret, so that it can be used again."""
    if not is_uri(place):
        return place
    options = [(key, value) for key, value in parse_qsl(urlsplit(place).query) if key in _HARMLESS]
    return shown(place) + (f"?{urlencode(options, safe=':/')}" if options else "")


def reason_of(error: BaseException) -> str:
    """Return one line on an error, the system's own where it has one."""
    strerror = getattr(error, "strerror", None)
    text = strerror or (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if len(text) <= 160 else text[:160] + "…"


class Mirror:
    """A folder on this machine and the place at a URI that it is copied to and from.

    Only files that changed since this mirror last wrote them are sent. Pickled, it is its URI and its folder.

    Raises:
        StorageError: from every method, where the storage refuses; the sentence names the URI without keys.
    """

    def __init__(self, uri: str, local: Path) -> None:
        self.uri, self.local = uri, local
        self._sent: dict[str, tuple[int, int]] = {}
        self._opened: tuple[Any, str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Mirror, (self.uri, self.local)

    def __repr__(self) -> str:
        return f"Mirror({shown(self.uri)!r}, {str(self.local)!r})"

    def files(self, folder: str = "") -> list[str]:
        """Return the names of all files at the URI below ``folder``, relative to the URI."""
        from pyarrow import fs

        with self._errors("read"):
            system, root = self._open()
            selector = fs.FileSelector(_joined(root, folder), recursive=True, allow_not_found=True)
            found = system.get_file_info(selector)
        prefix = root.rstrip("/") + "/"
        return sorted(each.path.removeprefix(prefix) for each in found if each.type == fs.FileType.File)

    def has(self, name: str) -> bool:
        """Return whether a file is at the URI."""
        from pyarrow import fs

        with self._errors("read"):
            system, root = self._open()
            return bool(system.get_file_info(_joined(root, name)).type == fs.FileType.File)

    def require_bucket(self) -> None:
        """Do nothing where the storage answers and has the URI's bucket; a search would else find out late."""
        from pyarrow import fs

        with self._errors("write"):
            system, root = self._open()
            if system.type_name in _OBJECT_STORES:
                bucket = system.get_file_info(root.split("/")[0])
                if bucket.type == fs.FileType.NotFound:
                    raise OSError("NoSuchBucket")

    def read(self, name: str) -> bytes | None:
        """Return a small file's bytes; None where there is none."""
        with self._errors("read"):
            system, root = self._open()
            try:
                with system.open_input_stream(_joined(root, name), compression=None) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small file at the URI."""
        with self._errors("write"), self._stream(name) as stream:
            stream.write(data)

    def pull(self, names: Sequence[str]) -> None:
        """Copy files from the URI to the folder, each whole or not at all."""
        for name in names:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            try:
                with self._errors("read"):
                    system, root = self._open()
                    with system.open_input_stream(_joined(root, name), compression=None) as stream:
                        _copy(stream, partial)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
            self._sent[name] = stamp_of(target)

    def push(self, folder: str = "", *, without: Collection[str] = ()) -> None:
        """Copy the folder's new and changed files to the URI, those that vouch for others last.

        Args:
            folder: only what lies below it.
            without: names of folders and files to leave out, wherever they lie. Hidden ones always are.
        """
        names = [
            path.relative_to(self.local).as_posix()
            for path in sorted((self.local / folder).rglob("*"))
            if path.is_file() and not any(_is_left_out(part, without) for part in path.relative_to(self.local).parts)
        ]
        for name in sorted(names, key=_turn):
            self.push_file(name)

    def push_file(self, name: str, source: Path | None = None) -> None:
        """Copy one file to the URI if it changed; ``source``: from elsewhere, and in any case."""
        path = source or self.local / name
        stamp = stamp_of(path)
        if source is None and self._sent.get(name) == stamp:
            return
        with self._errors("write"), path.open("rb") as content, self._stream(name) as stream:
            shutil.copyfileobj(content, stream, _CHUNK)
        self._sent[name] = stamp

    def delete(self, folder: str) -> None:
        """Delete all files at the URI below ``folder``; there may be none. The folder here stays."""
        with self._errors("delete"):
            system, root = self._open()
            with suppress(FileNotFoundError):
                system.delete_dir(_joined(root, folder))
        self._sent = {name: stamp for name, stamp in self._sent.items() if not name.startswith(f"{folder}/")}

    def delete_file(self, name: str) -> None:
        """Delete one file at the URI; it may be missing."""
        with self._errors("delete"):
            system, root = self._open()
            with suppress(FileNotFoundError):
                system.delete_file(_joined(root, name))

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            self._opened = storage_at(self.uri)
        return self._opened

    @contextmanager
    def _stream(self, name: str) -> Iterator[Any]:
        system, root = self._open()
        path = _joined(root, name)
        if system.type_name not in _OBJECT_STORES:
            # a file system has folders that must be there first, and shows a file while it is written
            system.create_dir(str(PurePosixPath(path).parent), recursive=True)
            partial = f"{path}.{os.getpid()}.tmp"
            with system.open_output_stream(partial, compression=None) as stream:
                yield stream
            system.move(partial, path)
            return
        with system.open_output_stream(path, compression=None) as stream:
            yield stream

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(refusal(self.uri, verb, error)) from None


def refusal(uri: str, verb: str, error: BaseException) -> str:
    """Return the sentence on a storage that refuses, with what mends it; it holds no key."""
    text = str(error)
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text or "bucket does not exist" in text.lower():
        reason, mend = "there is no such bucket", "make the bucket, or correct its name"
    elif any(word in text for word in ("ACCESS_DENIED", "Forbidden", "SIGNATURE", "INVALID_ACCESS", "InvalidAccess")):
        reason, mend = "access is denied", "check the credentials, such as AWS_ACCESS_KEY_ID, on this node"
    elif any(word in text for word in ("NETWORK_CONNECTION", "curlCode", "connect")):
        reason, mend = "the storage does not answer", "check the endpoint and the network"
    else:
        reason, mend = _first_line(text, uri), "check the URI, the credentials and the network"
    return f"Cannot {verb} {shown(uri)} ({reason}): {mend}"


def _first_line(text: str, uri: str) -> str:
    parts = urlsplit(uri)
    line = (text.strip().splitlines() or ["unknown error"])[0].replace(uri, shown(uri))
    for secret in (parts.username, parts.password):
        line = line.replace(secret, "…") if secret else line
    return line[:200]


def _joined(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}".rstrip("/") if name else root.rstrip("/")


def _turn(name: str) -> tuple[int, bool, str]:
    """Order files so that those which vouch for others come last; in a checkpoint it is the JSON files that do."""
    last = PurePosixPath(name).name
    return (VOUCHERS.index(last) + 1 if last in VOUCHERS else 0, last.endswith(".json"), name)


def _is_left_out(part: str, without: Collection[str]) -> bool:
    return part.startswith(".") or part in without


def stamp_of(path: Path) -> tuple[int, int]:
    """Return a file's size and time of change, by which it is seen to have changed."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _copy(stream: Any, target: Path) -> None:
    with target.open("wb") as file:
        while chunk := stream.read(_CHUNK):
            file.write(chunk)
