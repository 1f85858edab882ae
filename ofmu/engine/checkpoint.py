"""Checkpoints of a run: the shards of every rank as safetensors, and the state of the loop as JSON.

Each file lists the parameter elements that it holds. So a checkpoint can be loaded on any number of ranks and at any
ZeRO stage. A checkpoint is complete only if the files of every rank are present and match their checksums.

A checkpoint holds no buffers and no frozen parameters, which come from the model that a run or a training starts from.
No causal language model of Transformers changes them, and a run refuses a model that does: see
:mod:`ofmu.engine.repeatable`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from safetensors.torch import save_file

from ofmu.errors import RunError
from ofmu.io.files import file_hash, storage_errors, sync, write_json
from ofmu.vectors.base import Segment, Vector, by_parameter

_CHECKSUM = "description_sha256"


class Layout(Protocol):
    """Where the elements of a vector are, such as a :class:`ofmu.vectors.base.VectorSpace`."""

    @property
    def replicated(self) -> bool:
        """Whether every rank holds the whole vector."""

    def segments(self) -> list[Segment]:
        """Return the segments of the parameters that the local flat tensors hold."""

    def zeros(self) -> Vector:
        """Return a new zero vector."""


def save_checkpoint(
    directory: Path, space: Layout, vectors: dict[str, Vector], state: dict[str, Any], rank: int, world_size: int
) -> None:
    """Write this rank's part of a checkpoint.

    Only rank 0 writes replicated vectors. The JSON file is written last, so its presence says that the tensors are
    complete.

    Args:
        directory: an existing directory that no other attempt writes to.
        space: the space of ``vectors``.
        vectors: the vectors by name.
        state: JSON values.
        rank: the rank of this process.
        world_size: the number of ranks.

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
        # Without sync, a crash of the machine could keep the file's name and lose the file's bytes.
        sync(target)
        description = {
            "writers": writers,
            "names": list(vectors),
            "segments": [asdict(segment) for segment in space.segments()],
            "sha256": file_hash(target),
            "state": state,
        }
        write_json(directory / f"rank_{rank:05d}.json", description | {_CHECKSUM: _checksum(description)})


def load_checkpoint(directory: Path, space: Layout) -> tuple[dict[str, Any], dict[str, Vector]]:
    """Return the state, and this rank's part of each vector. The writer may have had another layout.

    Raises:
        RunError: a file is missing or does not match its checksum, or the checkpoint is of another model.
    """
    parts = _verified_parts(directory)
    names: list[str] = parts[0][1]["names"]
    vectors = {name: space.zeros() for name in names}
    local_segments = by_parameter(space.segments())
    copied = 0
    for file, description in parts:
        with safe_open(file, framework="pt") as stored:
            for raw in description["segments"]:
                source = Segment(**raw)
                for segment in local_segments[source.parameter]:
                    copied += _copy_overlap(stored, source, segment, vectors)
    needed = sum(segment.length for segments in local_segments.values() for segment in segments)
    if copied != needed:
        raise RunError(f"The checkpoint {directory} holds {copied} of the {needed} parameters that this model needs")
    return parts[0][1]["state"], vectors


def is_valid(directory: Path) -> bool:
    """Return whether the files of every rank are present and match their checksums."""
    try:
        _verified_parts(directory)
    except RunError:
        return False
    return True


def _copy_overlap(stored: Any, source: Segment, target: Segment, vectors: dict[str, Vector]) -> int:
    """Copy the elements that both segments cover, for every vector. Return the number of elements per vector."""
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
    """Return the tensor file and the description of every rank."""
    parts = list(_parts(directory))
    expected = parts[0][1]["writers"] if parts else 1
    if len(parts) != expected:
        raise RunError(f"The checkpoint {directory} holds {len(parts)} of {expected} parts: use an earlier checkpoint")
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
        if not isinstance(description, dict) or description.pop(_CHECKSUM, None) != _checksum(description):
            raise RunError(f"The checkpoint file {path} is damaged: use an earlier checkpoint")
        yield path.with_suffix(".safetensors"), description


def _checksum(description: dict[str, Any]) -> str:
    """Return a checksum of the loop's state and the segments, which the checksum of the tensors does not cover."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
