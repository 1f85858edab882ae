"""Prepared models and scores at a search's URI, for trials on other nodes and for a resume on another machine.

They lie below ``prepared/<kind>/<key>``, each with the manifest of checksums that it has in the cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage.mirror import Mirror, below
from ofmu.errors import RunError
from ofmu.io.cache import MANIFEST, Cache, content_key, directory_hashes

if TYPE_CHECKING:
    from ofmu.tasks.preparation import Prepared

_FOLDER = "prepared"
_GIVEN = "given"
_NEEDED = ("target", "target_scores", "reference_scores")
"""What trials load."""
_MADE = ("base", "retrain")
"""What a preparation would make again where the cache lacks it, and trials do not load."""


def share_prepared(prepared: Prepared, uri: str) -> None:
    """Copy to the URI what other machines need; what is there already is not copied again.

    Raises:
        StorageError: the storage refuses.
    """
    mirror = Mirror(uri, Path("/"))
    for place in _shared(prepared):
        directory, target = _directory(place), _place_of(place)
        manifest = _manifest(directory)
        if mirror.read(f"{target}/{MANIFEST}") == manifest:
            continue
        for name in json.loads(manifest)["files"]:
            mirror.push_file(f"{target}/{name}", directory / name)
        mirror.write(f"{target}/{MANIFEST}", manifest)


def fetch_prepared(prepared: Prepared, uri: str, cache: Cache) -> Prepared:
    """Return ``prepared`` with paths that this node has: those of the driver where they exist, else copies in a cache.

    Raises:
        RunError: neither this node nor the URI has one.
        StorageError: the storage, or this node's disk, refuses.
    """
    mirror, found = Mirror(uri, Path("/")), dict[str, Any]()
    for name in _NEEDED:
        place = getattr(prepared, name)
        if place is None or place.exists():
            continue
        directory = _adopt(mirror, _place_of(place), cache)
        if directory is None:
            raise RunError(f"{place} is neither on this node nor in the run directory: resume the search")
        found[name] = directory / place.name if place.suffix == ".json" else directory
    return replace(prepared, **found) if found else prepared


def fetch_into_cache(uri: str, cache: Cache) -> None:
    """Bring what the search at the URI has prepared into a cache that lacks it, so that it is not made again.

    Raises:
        StorageError: the storage, or this machine's disk, refuses.
    """
    mirror = Mirror(uri, Path("/"))
    places = {name.rpartition("/")[0] for name in mirror.files(_FOLDER) if name.endswith(f"/{MANIFEST}")}
    for place in sorted(places):
        if not place.startswith(f"{_FOLDER}/{_GIVEN}/"):
            _adopt(mirror, place, cache)


def _adopt(mirror: Mirror, place: str, cache: Cache) -> Path | None:
    """Return the cache's directory of what lies at a place of the URI; None where that is missing or damaged."""
    kind, key = place.split("/")[1:]

    def fill(directory: Path) -> None:
        part = Mirror(below(mirror.uri, place), directory)
        part.pull(part.files())

    return cache.import_entry(kind, key, fill)


def _shared(prepared: Prepared) -> Iterator[Path]:
    for name in _NEEDED:
        place = getattr(prepared, name)
        if place is not None:
            yield place
    for name in _MADE:
        place = getattr(prepared, name)
        if place is not None and (place / MANIFEST).is_file():
            yield place


def _directory(place: Path) -> Path:
    """Return the directory that is copied: scores are a file in one of their own."""
    return place.parent if place.suffix == ".json" else place


def _place_of(place: Path) -> str:
    """Return where below the URI a part lies; told from its path alone, since another node may not have it."""
    directory = _directory(place)
    kind, key = directory.parent.name, directory.name
    if kind in ("models", "scores") and len(key) == 32:
        return f"{_FOLDER}/{kind}/{key}"
    return f"{_FOLDER}/{_GIVEN}/{content_key({'path': str(place)})}"


def _manifest(directory: Path) -> bytes:
    """Return the directory's manifest, made here where the cache did not make the directory."""
    path = directory / MANIFEST
    if path.is_file():
        return path.read_bytes()
    return json.dumps({"files": directory_hashes(directory), "cost": {}}).encode()
