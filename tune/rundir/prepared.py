"""Upload prepared models and scores to a search's URI, and download them to other nodes and machines.

Each part is at ``prepared/<kind>/<key>`` below the URI, with the manifest of checksums that the cache writes. A part
that is not in the cache, such as a user's own target model, is at ``prepared/given/<hash of its path>``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage.mirror import Mirror
from cluster.storage.uri import join_uri
from ofmu.errors import RunError
from ofmu.io.cache import MANIFEST, Cache, content_key, directory_hashes

if TYPE_CHECKING:
    from ofmu.tasks.preparation import Prepared

_FOLDER = "prepared"
_GIVEN = "given"
_NEEDED_BY_TRIALS = ("target", "target_scores", "reference_scores")
_NEEDED_BY_PREPARATION = ("base", "retrain")
"""Parts that trials do not load, and that a preparation with an empty cache would have to make again."""


def upload_prepared(prepared: Prepared, uri: str) -> None:
    """Copy to the URI the parts that other machines need. A part with the same manifest is not copied again.

    Raises:
        StorageError: the storage refuses.
    """
    mirror = Mirror(uri, Path("/"))
    for part in _parts_to_upload(prepared):
        directory, target = _directory(part), _remote_name(part)
        manifest = _manifest(directory)
        if mirror.read(f"{target}/{MANIFEST}") == manifest:
            continue
        for name in json.loads(manifest)["files"]:
            mirror.push_file(f"{target}/{name}", directory / name)
        mirror.write(f"{target}/{MANIFEST}", manifest)


def download_prepared(prepared: Prepared, uri: str, cache: Cache) -> Prepared:
    """Return ``prepared`` with paths that exist on this node.

    A part whose path does not exist here is downloaded into ``cache``.

    Raises:
        RunError: a part is neither on this node nor at the URI.
        StorageError: the storage, or this node's disk, refuses.
    """
    mirror, found = Mirror(uri, Path("/")), dict[str, Any]()
    for name in _NEEDED_BY_TRIALS:
        part = getattr(prepared, name)
        if part is None or part.exists():
            continue
        directory = _import_entry(mirror, _remote_name(part), cache)
        if directory is None:
            raise RunError(f"{part} is neither on this node nor in the run directory: resume the search")
        found[name] = directory / part.name if _is_scores(part) else directory
    return replace(prepared, **found) if found else prepared


def download_into_cache(uri: str, cache: Cache) -> None:
    """Download into the cache all parts at the URI that the cache lacks, so that they are not made again.

    Raises:
        StorageError: the storage, or this machine's disk, refuses.
    """
    mirror = Mirror(uri, Path("/"))
    names = {name.rpartition("/")[0] for name in mirror.files(_FOLDER) if name.endswith(f"/{MANIFEST}")}
    for name in sorted(names):
        if not name.startswith(f"{_FOLDER}/{_GIVEN}/"):
            _import_entry(mirror, name, cache)


def _import_entry(mirror: Mirror, name: str, cache: Cache) -> Path | None:
    """Download the part at ``name`` into the cache; None if the part is missing or damaged."""
    kind, key = name.split("/")[1:]

    def fill(directory: Path) -> None:
        part = Mirror(join_uri(mirror.uri, name), directory)
        part.pull(part.files())

    return cache.import_entry(kind, key, fill)


def _parts_to_upload(prepared: Prepared) -> Iterator[Path]:
    for name in _NEEDED_BY_TRIALS:
        part = getattr(prepared, name)
        if part is not None:
            yield part
    for name in _NEEDED_BY_PREPARATION:
        part = getattr(prepared, name)
        if part is not None and (part / MANIFEST).is_file():
            yield part


def _is_scores(part: Path) -> bool:
    """Return whether a part is a scores file, not a model's directory."""
    return part.suffix == ".json"


def _directory(part: Path) -> Path:
    """Return the directory to copy. A scores file is the only part in its directory."""
    return part.parent if _is_scores(part) else part


def _remote_name(part: Path) -> str:
    """Return the name of a part below the URI. Only the path is used, since another node may not have the files."""
    directory = _directory(part)
    kind, key = directory.parent.name, directory.name
    if kind in ("models", "scores") and len(key) == 32:
        return f"{_FOLDER}/{kind}/{key}"
    return f"{_FOLDER}/{_GIVEN}/{content_key({'path': str(part)})}"


def _manifest(directory: Path) -> bytes:
    """Return the manifest that the cache wrote, or a new one for a directory that is not in the cache."""
    path = directory / MANIFEST
    if path.is_file():
        return path.read_bytes()
    return json.dumps({"files": directory_hashes(directory), "cost": {}}).encode()
