"""The weights of a model as a stream, and safetensors files that are written from it and compared with it.

A model may be larger than the memory of a rank. So its weights come one after the other, each is written to its place
in a file, and no two of them need to be in memory at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from torch import Tensor

MAX_FILE_BYTES = 5 * 10**9
"""Weights of more bytes are saved in several files with an index, which Transformers reads."""
_NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The names of types in safetensors files, in the order in which the library writes the tensors of these types."""
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class WeightStream:
    """The weights of a model in the type in which they are saved. The stream can be read once.

    Iteration yields each name with its tensor on the CPU.
    """

    shapes: Mapping[str, torch.Size]
    """The shape of every weight, by name."""
    dtype: torch.dtype
    """The type in which the weights are saved."""
    tensors: Iterator[tuple[str, Tensor]]
    """The weights in any type, on any device and in any order."""
    other_dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    """The types of the weights that are saved in another type, by name."""

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the type in which a weight is saved."""
        return self.other_dtypes.get(name, self.dtype)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.tensors:
            yield name, tensor.detach().cpu().to(self.dtype_of(name)).contiguous()
            del tensor  # else it would live while the next one is gathered

    def collect(self) -> dict[str, Tensor]:
        """Return the whole model. The memory must fit it."""
        return dict(self)


def write_weights(directory: Path, stream: WeightStream, max_file_bytes: int = MAX_FILE_BYTES) -> dict[str, str]:
    """Write the weights into ``model.safetensors``, or into several files and their index.

    The files have the same bytes as those that the safetensors library writes.

    Args:
        directory: an existing directory without weights.
        stream: the weights.
        max_file_bytes: bound on the weights in one file. A larger weight gets a file of its own.

    Returns:
        The fingerprint of each weight, by name, for :func:`differing_weight`.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
        ValueError: the stream lacks a weight, or holds an unknown one or one of another shape.
    """
    empty = {
        name: torch.empty(shape, dtype=stream.dtype_of(name), device="meta") for name, shape in stream.shapes.items()
    }
    split = split_state_dict_into_shards_factory(
        empty,
        get_storage_size=lambda tensor: tensor.nbytes,
        get_storage_id=lambda _: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_file_bytes,
    )
    places: dict[str, tuple[Path, int]] = {}
    for file, names in split.filename_to_tensors.items():
        offsets = _write_header(directory / file, {name: empty[name] for name in names})
        places |= {name: (directory / file, offset) for name, offset in offsets.items()}
    fingerprints: dict[str, str] = {}
    for name, tensor in stream:
        if name not in places or tensor.shape != stream.shapes[name]:
            raise ValueError(f"the stream has {name} of shape {tuple(tensor.shape)}, which is not among its shapes")
        path, offset = places[name]
        with path.open("r+b") as out:
            out.seek(offset)
            out.write(_bytes(tensor))
        fingerprints[name] = _fingerprint(tensor)
        del tensor
    if lacking := stream.shapes.keys() - fingerprints.keys():
        raise ValueError(f"the stream lacks the weight {min(lacking)}")
    if split.is_sharded:
        _write_index(directory / _INDEX, stream.shapes, split.metadata, split.tensor_to_filename)
    return fingerprints


def _write_header(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Write the header of a safetensors file: its length in 8 bytes, then JSON. Return where each tensor begins."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    types, begin = list(_NAMES), 0
    for name in sorted(tensors, key=lambda name: (types.index(tensors[name].dtype), name)):
        tensor = tensors[name]
        end = begin + tensor.nbytes
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
    return {name: 8 + len(header) + entries[name]["data_offsets"][0] for name in tensors}


def _write_index(
    path: Path, shapes: Mapping[str, torch.Size], metadata: Mapping[str, Any], files: Mapping[str, str]
) -> None:
    total = sum(shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_parameters": total, **metadata}, "weight_map": dict(files)}
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def differing_weight(directory: Path, fingerprints: Mapping[str, str]) -> str | None:
    """Compare saved weights with fingerprints, one weight at a time. Return a clause about the first difference.

    Args:
        directory: the saved model.
        fingerprints: what :func:`write_weights` returned.
    """
    lacking = set(fingerprints)
    for file in sorted(directory.glob("*.safetensors")):
        for name, tensor in read_weights(file):
            if fingerprints.get(name) != _fingerprint(tensor):
                return f"its weight '{name}' differs"
            lacking.discard(name)
            del tensor
    return f"its weight '{min(lacking)}' is missing" if lacking else None


def read_weights(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a safetensors file. The file is not mapped, so a tensor takes memory only while it lives."""
    with safe_open(file, framework="pt", backend="pread") as stored:
        for name in stored.keys():  # noqa: SIM118
            yield name, stored.get_tensor(name)


def _fingerprint(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
