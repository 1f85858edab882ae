"""Paths and URIs of storage (s3://, gs://, hdfs:// and every other scheme that pyarrow knows).

A URI may hold credentials, so messages and stored files contain a URI only in the forms that :func:`redacted` and
:func:`without_credentials` return.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from ofmu.errors import RunError
from ofmu.io.text import HALF_CHARACTER

_PUBLIC_OPTIONS = frozenset(
    {"endpoint_override", "scheme", "region", "allow_bucket_creation", "tls_verify_certificates"}
)
_MAX_REASON = 160


def is_uri(location: str | os.PathLike[str]) -> bool:
    """Return whether ``location`` is a URI. Everything else is a path."""
    return "://" in str(location)


def storage_at(location: str) -> tuple[Any, str]:
    """Return the pyarrow file system of a path or URI, and the path within that file system.

    Raises:
        OSError: the storage does not answer.
        ValueError: the URI has an unknown scheme. The message holds no credentials.
    """
    # Imported here: pyarrow takes a moment to import, and local runs do not need it.
    from pyarrow import fs

    if is_uri(location):
        try:
            system, path = fs.FileSystem.from_uri(location)
        except ValueError as error:
            raise ValueError(str(error).replace(location, redacted(location))) from None
        return system, path
    return fs.LocalFileSystem(), str(Path(location).expanduser().absolute())


def check_storage(run_dir: str | os.PathLike[str]) -> None:
    """Check that Ray can store files in a run directory. The directory need not exist.

    Raises:
        RunError: the path is not text in UTF-8. Ray's file systems take no other paths.
    """
    if HALF_CHARACTER.search(str(run_dir)):
        raise RunError(f"Ray cannot write to {str(run_dir)!a}, whose name is not UTF-8: name another run directory")


def join_uri(location: str, name: str) -> str:
    """Return the path or URI of ``name`` in ``location``. A URI keeps its options (``?endpoint_override=...``)."""
    path, mark, options = location.partition("?") if is_uri(location) else (location, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{options}"


def redacted(location: str) -> str:
    """Return a URI without its credentials and without all its options. A path stays as it is."""
    if not is_uri(location):
        return location
    parts = urlsplit(location)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def has_credentials(location: str) -> bool:
    """Return whether a URI names a user, a password, or an option that may be secret. A path has none."""
    if not is_uri(location):
        return False
    parts = urlsplit(location)
    options = {key for key, _ in parse_qsl(parts.query, keep_blank_values=True)}
    return "@" in parts.netloc or not options <= set(_PUBLIC_OPTIONS)


def without_credentials(location: str) -> str:
    """Return a URI with only the options that cannot be secret, so that the URI still works. A path stays as it is."""
    if not is_uri(location):
        return location
    options = [(key, value) for key, value in parse_qsl(urlsplit(location).query) if key in _PUBLIC_OPTIONS]
    return redacted(location) + (f"?{urlencode(options, safe=':/')}" if options else "")


def short_reason(error: BaseException) -> str:
    """Return one line about an error: the operating system's own text, or else the first line of the message."""
    strerror = getattr(error, "strerror", None)
    text = strerror or (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if len(text) <= _MAX_REASON else text[:_MAX_REASON] + "…"
