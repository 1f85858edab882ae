"""The files that a model directory must hold. This check needs neither torch nor the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ofmu.errors import ModelError

_TRAINABLE = {"F64", "F32", "F16", "BF16"}
_INTEGERS = {"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
_MAX_HEADER_BYTES = 100_000_000
"""The bound that the safetensors format itself sets."""


def check_model_directory(path: str | Path) -> None:
    """Check that a local model can be loaded without running code, and trained. A text that may be a hub name passes.

    Raises:
        ModelError: ``path`` is a file, is a path at which nothing exists, or is a directory without a config or
            safetensors weights; or the model is quantised, is an adapter, or names weights outside of its directory.
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.exists():
            raise ModelError(f"The model {path} is a file: name the directory that holds it")
        if isinstance(path, Path) or folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
            raise ModelError(f"There is no model directory {path}: check the path, or give a hub name")
        return
    if (folder / "adapter_config.json").is_file():
        # Transformers would load the adapter's base model from the place that this file names.
        raise ModelError(
            f"The directory {path} holds adapters of another model: merge them with PEFT's merge_and_unload, and name "
            "the merged model"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"The directory {path} has no config.json, so it is not a model: name a saved model")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"The model directory {path} has no *.safetensors weights: save the model with safetensors, the only "
            "accepted format, since other formats can run code"
        )
    _check_index(folder)
    _check_not_quantised(folder)


def _check_index(folder: Path) -> None:
    for index in sorted(folder.glob("*.safetensors.index.json")):
        files = _read_json(index).get("weight_map")
        for name in files.values() if isinstance(files, dict) else ():
            parts = (*PurePosixPath(str(name)).parts, *PureWindowsPath(str(name)).parts)
            if not isinstance(name, str) or ".." in parts or PurePosixPath(name).is_absolute() or ":" in name:
                raise ModelError(
                    f"The file {index} names the weights '{name}', which lie outside of the model's directory: save "
                    "the model again"
                )


def _check_not_quantised(folder: Path) -> None:
    config = _read_json(folder / "config.json")
    sections = [config, *(value for value in config.values() if isinstance(value, dict))]
    settings = next((part["quantization_config"] for part in sections if part.get("quantization_config")), None)
    if settings is not None:
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        reason = f"its config.json has a quantization_config ({method or 'of no name'})"
    else:
        tensors = ((name, str(dtype)) for file in sorted(folder.glob("*.safetensors")) for name, dtype in _dtypes(file))
        found = next(((name, dtype) for name, dtype in tensors if _is_quantised(name, dtype)), None)
        if found is None:
            return
        reason = f"its weight '{found[0]}' has the type {found[1]}"
    raise ModelError(
        f"The model {folder} is quantised, and quantised weights cannot be trained ({reason}): name the model in fp32, "
        "fp16 or bf16"
    )


def _is_quantised(name: str, dtype: str) -> bool:
    """Return whether a tensor is a quantised weight. Buffers of integers, such as masks, are no weights."""
    if dtype in _INTEGERS:
        return "weight" in name.rpartition(".")[2]
    return dtype not in _TRAINABLE and not dtype.startswith("C")


def _dtypes(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield name and type of each tensor from the header of a safetensors file. A damaged file has no tensors here."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size)) if size <= _MAX_HEADER_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return
    for name, tensor in header.items() if isinstance(header, dict) else ():
        if isinstance(tensor, dict) and "dtype" in tensor:
            yield name, tensor["dtype"]


def _read_json(path: Path) -> Mapping[str, Any]:
    """Return a JSON object. A damaged file is empty here, since Transformers says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
