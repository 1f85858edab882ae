"""The files that a model directory must hold. This check needs neither torch nor the hub."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ofmu.errors import ModelError
from ofmu.io.files import check_regular, expanded, looked_for
from ofmu.run_files import MODEL

_TRAINABLE = {"F64", "F32", "F16", "BF16"}
_HALF = {"BF16": "bfloat16", "F16": "float16"}
_INTEGERS = {"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
_COUNT = re.compile("layer|expert|block|depth")
"""Keys of a config that name a number of parts. Every part has at least one weight."""
_WIDTH = re.compile("vocab_size|hidden_size|intermediate_size|embd|embed_dim|d_model|ffn|d_ff|_inner|heads?$|head_dim")
"""Keys of a config that name a size of weights."""
_POSITIONS = re.compile("positions?$|position_embeddings|n_ctx|max_seq_len")
_VOCABULARY = re.compile(r"(tokenizer|vocab)\.json|.*\.model|vocab\.txt|.*\.tiktoken")
"""Names of the files from which Transformers makes a tokenizer."""
_SMALL_COUNT, _SMALL_WIDTH, _MAX_POSITIONS = 10_000, 2**20, 10**9
"""Counts and sizes up to these are harmless, whatever the weights are."""
_MAX_HEADER_BYTES = 100_000_000
"""The bound that the safetensors format itself sets."""


def check_model_directory(path: str | Path, *, weights: bool = True) -> None:
    """Check that a local model can be loaded without running code, and trained. A text that may be a hub name passes.

    Args:
        path: the directory.
        weights: False: the directory may lack weights, since only its ``config.json`` is wanted.

    Raises:
        ModelError: ``path`` is a file, is a path at which nothing exists, or is a directory without a config or
            safetensors weights; or the model is quantised, is an adapter, names weights outside of its directory, or
            has a config whose sizes the weights cannot have.
    """
    folder = expanded(path)
    if not folder.is_dir():
        if folder.exists():
            if folder.suffix in (".safetensors", ".json"):
                raise ModelError(f"The model {path} is a file: name the directory that holds it")
            raise ModelError(f"{path} is a file and no model: name a directory with config.json and *.safetensors")
        if isinstance(path, Path) or folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
            raise ModelError(f"There is no model directory {looked_for(path)}: check the path, or give a hub name")
        return
    if (folder / "adapter_config.json").is_file():
        # Transformers would load the adapter's base model from the place that this file names.
        raise ModelError(
            f"The directory {path} holds adapters of another model: merge them with PEFT's merge_and_unload, and name "
            "the merged model"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"The directory {path} has no config.json, so it is not a model: {_models_inside(folder)}")
    if not has_weights(folder):
        if not weights:
            return
        raise ModelError(
            f"The model directory {path} has no *.safetensors weights: save the model with safetensors, the only "
            "accepted format, since other formats can run code"
        )
    _check_index(folder)
    _check_not_quantised(folder)
    _check_sizes(folder)


def has_weights(folder: Path) -> bool:
    """Return whether a directory has weights in the only format that is accepted."""
    return any(folder.glob("*.safetensors"))


def has_tokenizer(folder: Path) -> bool:
    """Return whether a directory has a file from which Transformers makes a tokenizer."""
    return any(_VOCABULARY.fullmatch(path.name) for path in folder.iterdir())


def check_tokenizer(model: str, fallback: str | None) -> None:
    """Check that a local model has a tokenizer, or that there is another one for it. A hub name passes.

    Args:
        model: the model's directory, which exists, or a hub name.
        fallback: the directory or the hub name of the tokenizer for models without one.

    Raises:
        ModelError: there is no tokenizer, or the model is an image classifier.
    """
    folder, other = expanded(model), expanded(fallback or "")
    if fallback is not None and (other.exists() or other.is_absolute() or fallback.count("/") != 1):
        if not other.is_dir():
            raise ModelError(f"There is no directory {looked_for(fallback)} for model.tokenizer: check the path")
        if not has_tokenizer(other):
            raise ModelError(f"The directory {fallback} holds no tokenizer: name another one as model.tokenizer")
    elif fallback is None and folder.is_dir() and not has_tokenizer(folder):
        if _is_image_classifier(folder):
            raise ModelError(
                f"The model '{model}' is an image classifier, and the rows are texts: name a language model"
            )
        raise ModelError(
            f"The model '{model}' has no tokenizer: name a directory or a hub model that has one as model.tokenizer, "
            "or save a tokenizer there with tokenizer.save_pretrained"
        )


def _is_image_classifier(folder: Path) -> bool:
    names = read_object(folder / "config.json").get("architectures")
    return isinstance(names, list) and any(str(name).endswith("ForImageClassification") for name in names)


def _models_inside(folder: Path) -> str:
    """Return which model to name in place of the directory of a run, a search or a comparison."""
    if (folder / MODEL / "config.json").is_file():
        return f"name the model of this run, {folder / MODEL}"
    # The trials of a search, and those of a comparison's searches.
    patterns = (f"*/*/{MODEL}/config.json", f"*/*/*/*/{MODEL}/config.json")
    found = sorted(path.parent for pattern in patterns for path in folder.glob(pattern))
    return f"name the model of a trial, such as {found[0]}" if found else "name a saved model"


def _check_index(folder: Path) -> None:
    for index in sorted(folder.glob("*.safetensors.index.json")):
        files = read_object(index).get("weight_map")
        for name in files.values() if isinstance(files, dict) else ():
            parts = (*PurePosixPath(str(name)).parts, *PureWindowsPath(str(name)).parts)
            if not isinstance(name, str) or ".." in parts or PurePosixPath(name).is_absolute() or ":" in name:
                raise ModelError(
                    f"The file {index} names the weights '{name}', which lie outside of the model's directory: save "
                    "the model again"
                )


def _check_not_quantised(folder: Path) -> None:
    config = read_object(folder / "config.json")
    sections = [config, *(value for value in config.values() if isinstance(value, dict))]
    settings = next((part["quantization_config"] for part in sections if part.get("quantization_config")), None)
    if settings is not None:
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        reason = f"its config.json has a quantization_config ({method or 'of no name'})"
    else:
        tensors = ((tensor.name, tensor.dtype) for tensor in _tensors(folder))
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


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: str
    values: int


def _tensors(folder: Path) -> Iterator[_Tensor]:
    """Yield the tensors in the headers of a directory's safetensors files. A damaged file has no tensors here."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            check_regular(file)
            with file.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(size)) if size <= _MAX_HEADER_BYTES else {}
        except (OSError, ValueError, RecursionError):
            continue
        for name, tensor in header.items() if isinstance(header, dict) else ():
            if isinstance(tensor, dict) and "dtype" in tensor:
                shape = tensor.get("shape")
                sizes = [size for size in shape if isinstance(size, int)] if isinstance(shape, list) else []
                yield _Tensor(name, str(tensor["dtype"]), math.prod(sizes))


def stored_type(folder: Path) -> str:
    """Return torch's name of the type of a directory's weights: bfloat16 or float16 if all have it, else float32."""
    found = {tensor.dtype for tensor in _tensors(folder) if tensor.dtype in _TRAINABLE}
    return _HALF.get(found.pop(), "float32") if len(found) == 1 else "float32"


def stored_values(folder: Path) -> int:
    """Return the number of values in a directory's safetensors files."""
    return sum(tensor.values for tensor in _tensors(folder))


def _check_sizes(folder: Path) -> None:
    """Compare the sizes in config.json with the weights.

    Transformers makes a list or a layer for each count that a config names, before it looks at the weights. A damaged
    or hostile config would take minutes and the whole memory.
    """
    tensors = list(_tensors(folder))
    bounds = (
        (_COUNT, max(_SMALL_COUNT, len(tensors)), f"{len(tensors)} weights"),
        (_WIDTH, max(_SMALL_WIDTH, stored_values(folder)), f"{stored_values(folder):,} values"),
        (_POSITIONS, _MAX_POSITIONS, "fewer positions"),
    )
    for key, size in _numbers(read_object(folder / "config.json")):
        for pattern, bound, held in bounds:
            if pattern.search(key) and size > bound:
                raise ModelError(
                    f"The config.json of {folder} has {key} {size:.6g}, and its weights have {held}: name a model with "
                    "its own config.json"
                )


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Yield all numbers of a JSON value with the names under which they stand."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, key)
    elif isinstance(value, int | float):
        yield key, value


def read_object(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file of a model.

    A damaged file is empty here, since Transformers says what is wrong with it.
    """
    try:
        check_regular(path, _MAX_HEADER_BYTES)
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
