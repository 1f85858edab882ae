"""Checkpoints of a run: every rank's shards as safetensors, the loop's state as JSON.

Each file carries which parameter elements it holds, so a checkpoint loads into any number of ranks and any ZeRO
stage. A checkpoint counts only when every rank's files are there and match their checksums.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from ofmu.errors import RunError
from ofmu.io.files import file_hash, storage_errors, sync, write_json
from ofmu.vectors.base import Segment, Vector, VectorSpace

_SEAL = "description_sha256"


def save_checkpoint(
    directory: Path, space: VectorSpace, vectors: dict[str, Vector], state: dict[str, Any], rank: int, world_size: int
) -> None:
    """Write this rank's part of a checkpoint into ``directory``, which exists and is this attempt's own.

    Replicated vectors are written by rank 0 alone. The JSON file is written last: it vouches for the tensors.

    Raises:
        StorageError: the disk is full or read-only.
    """
    writers = 1 if space.replicated else world_size
    if rank >= writers:
        return
    tensors = {
        f"{name}/{index}": part.detach().cpu().contiguous()
        for name, vector in vectors.items()
        for index, part in enumerate(vector)
    }
    target = directory / f"rank_{rank:05d}.safetensors"
    with storage_errors(target):
        save_file(tensors, target)
        # a crash of the machine must not leave the newest checkpoints' names without their bytes
        sync(target)
        description = {
            "writers": writers,
            "names": list(vectors),
            "segments": [asdict(segment) for segment in space.segments()],
            "sha256": file_hash(target),
            "state": state,
        }
        sealed = description | {_SEAL: _seal(description)}
        write_json(directory / f"rank_{rank:05d}.json", sealed)


def load_checkpoint(directory: Path, space: VectorSpace) -> tuple[dict[str, Any], dict[str, Vector]]:
    """Return the state and this rank's vectors, cut from whatever layout the checkpoint was written in.

    Raises:
        RunError: a file is missing, or does not match its checksum.
    """
    parts = _verified_parts(directory)
    names: list[str] = parts[0][1]["names"]
    vectors = {name: space.zeros() for name in names}
    held: dict[str, list[Segment]] = defaultdict(list)
    for segment in space.segments():
        held[segment.parameter].append(segment)
    filled = 0
    for file, description in parts:
        with safe_open(file, framework="pt") as stored:
            for raw in description["segments"]:
                source = Segment(**raw)
                for segment in held[source.parameter]:
                    filled += _copy_overlap(stored, source, segment, vectors)
    wanted = sum(segment.length for segments in held.values() for segment in segments)
    if filled != wanted:
        raise RunError(f"The checkpoint {directory} holds {filled} of the {wanted} parameters that this model needs")
    return parts[0][1]["state"], vectors


def is_valid(directory: Path) -> bool:
    """Return whether every rank's files are present and unharmed."""
    try:
        _verified_parts(directory)
    except RunError:
        return False
    return True


def _copy_overlap(stored: Any, source: Segment, target: Segment, vectors: dict[str, Vector]) -> int:
    """Copy the elements that both segments cover, for every vector; return their number."""
    first = max(source.start, target.start)
    last = min(source.start + source.length, target.start + target.length)
    if first >= last:
        return 0
    begin = source.offset + first - source.start
    for name, vector in vectors.items():
        piece = stored.get_slice(f"{name}/{source.tensor}")[begin : begin + last - first]
        vector[target.tensor].narrow(0, target.offset + first - target.start, last - first).copy_(piece)
    return last - first


def _verified_parts(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    parts = list(_parts(directory))
    expected = parts[0][1]["writers"] if parts else 1
    if len(parts) != expected:
        raise RunError(f"The checkpoint {directory} holds {len(parts)} of {expected} parts: use an earlier one")
    for file, description in parts:
        if not file.is_file() or file_hash(file) != description["sha256"]:
            raise RunError(f"The checkpoint file {file} is missing or damaged: use an earlier checkpoint")
    return parts


def _parts(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(directory.glob("rank_*.json")):
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"The checkpoint file {path} cannot be read: use an earlier checkpoint") from error
        if not isinstance(description, dict) or description.pop(_SEAL, None) != _seal(description):
            raise RunError(f"The checkpoint file {path} is damaged: use an earlier checkpoint")
        yield path.with_suffix(".safetensors"), description


def _seal(description: dict[str, Any]) -> str:
    """Return a checksum of the loop's state and the tensors' places, which no checksum of the tensors covers."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
