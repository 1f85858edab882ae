"""Checks of weights: a loaded model has all its weights, and a saved model holds the weights that it had."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
from transformers.utils import logging as transformers_logging

from ofmu.errors import ModelError
from ofmu.models.randomness import may_be_random
from ofmu.models.state_entries import missing_entry
from ofmu.models.weight_stream import differing_weight, read_weights

_VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}
"""Keys of a config that saving may change, and that do not change what the model computes in a given type."""

_MAX_RELOADED_BYTES = 4 * 2**30
"""Bound on a model that :func:`check_saved` loads a second time."""


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Leave out the table of Transformers about missing weights. :func:`check_loaded` says the same in a sentence."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def check_loaded(model: Any, info: Mapping[str, Iterable[Any]], path: str | Path, *, new_head: bool = False) -> None:
    """Check that a model was loaded from weights that are complete and finite. Tied weights may be missing.

    Args:
        model: the model.
        info: the loading info of Transformers.
        path: the model's name in errors.
        new_head: weights outside of the base model are new, so they may be missing, unexpected or of another shape.

    Raises:
        ModelError: a weight is missing, unexpected, of another shape, NaN or infinite. Without this check, missing
            weights would be random.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    shapes = [str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]]
    kinds = {"lacks": info["missing_keys"], "has another shape for": shapes, "has the unknown": info["unexpected_keys"]}
    for problem, keys in kinds.items():
        names = sorted(str(key) for key in keys if not new_head or str(key).startswith(prefix))
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"The model {path} {problem} weight '{names[0]}'{more}, as its config.json names the architecture "
                f"{type(model).__name__}: save the model again with its own config"
            )
    for name, weight in model.state_dict().items():
        check_finite(name, weight, path)


def check_finite(name: str, weight: Tensor, path: str | Path) -> None:
    """Check that a weight has only finite values.

    Raises:
        ModelError: a value is NaN or infinite.
    """
    # The smallest and the largest value are NaN if any value is, and need no copy of the weights.
    if weight.is_floating_point() and weight.numel() and not all(map(torch.isfinite, torch.aminmax(weight))):
        raise ModelError(f"The weight '{name}' of the model {path} is NaN or infinite: name another model")


def saves_under_other_names(model: Any) -> bool:
    """Return whether Transformers saves weights of this model under other names, or in other shapes, than it has."""
    return bool(getattr(model, "_weight_conversions", None) or get_model_conversion_mapping(model, add_legacy=False))


def stored_under_other_names(config: Mapping[str, Any]) -> bool:
    """Return whether a model with this ``config.json`` is one of :func:`saves_under_other_names`."""
    kinds = (config.get("model_type"), *(config.get("architectures") or ()))
    return any(get_checkpoint_conversion_mapping(kind) is not None for kind in kinds)


def check_saved(model: Any, directory: Path, weights: Mapping[str, Tensor]) -> None:
    """Check that a saved model computes what ``model`` computes with ``weights``, bit for bit.

    Equal weights under an equal config give equal logits. The weights on disk are read one tensor at a time and
    compared byte by byte, so no second model is loaded. Some architectures, such as a mixture of experts, save their
    weights under other names. Such a model is loaded again if it has at most 4 GiB. Of a larger one, only the number of
    values and the config are checked.

    Raises:
        ModelError: a weight or a setting on disk differs, or an entry of the model's state dict is missing.
    """
    missing = _missing(missing_entry(model, weights))
    _raise_if(
        _differing_weight(model, directory, weights) or missing or _differing_setting(model, directory), directory
    )


def check_written(model: Any, directory: Path, fingerprints: Mapping[str, str]) -> None:
    """Check that a model whose weights were written from a stream computes what the weights compute, bit for bit.

    Args:
        model: the model, whose config and whose names of weights are compared.
        directory: the saved model.
        fingerprints: what :func:`ofmu.models.weight_stream.write_weights` returned.

    Raises:
        ModelError: a weight or a setting on disk differs, or an entry of the model's state dict is missing.
    """
    missing = _missing(missing_entry(model, fingerprints))
    _raise_if(differing_weight(directory, fingerprints) or missing or _differing_setting(model, directory), directory)


def _missing(name: str | None) -> str | None:
    return None if name is None else f"its weight '{name}' is missing"


def _raise_if(differing: str | None, directory: Path) -> None:
    if differing is not None:
        raise ModelError(
            f"The saved model {directory} would not compute what the model in memory does ({differing}): name another "
            "model to start from"
        )


def _differing_weight(model: Any, directory: Path, weights: Mapping[str, Tensor]) -> str | None:
    saved, values, renamed = set[str](), 0, False
    for file in sorted(directory.glob("*.safetensors")):
        for name, tensor in read_weights(file):
            values += tensor.numel()
            if name not in weights:
                renamed = True
            elif not _same_bytes(tensor, weights[name]):
                return f"its weight '{name}' differs"
            else:
                saved.add(name)
            del tensor  # else it would live while the next one is read
    if renamed:
        return _differing_renamed_weight(model, directory, weights, values)
    places = {weights[name].data_ptr() for name in saved}
    missing = [name for name in weights if name not in saved and weights[name].data_ptr() not in places]
    return _missing(missing[0] if missing else None)


def _differing_renamed_weight(
    model: Any, directory: Path, weights: Mapping[str, Tensor], saved_values: int
) -> str | None:
    distinct = {tensor.data_ptr(): tensor for tensor in weights.values()}.values()
    values = sum(tensor.numel() for tensor in distinct)
    if values != saved_values:
        return f"it holds {saved_values} values in place of {values}"
    if sum(tensor.nbytes for tensor in distinct) > _MAX_RELOADED_BYTES:
        return None
    # In the longest of the types, no weight is rounded.
    dtype = functools.reduce(torch.promote_types, (one.dtype for one in distinct if one.is_floating_point()))
    with quiet_loading():
        loaded = type(model).from_pretrained(directory, dtype=dtype, trust_remote_code=False)
    state = loaded.state_dict()
    changed = [name for name, tensor in weights.items() if name not in state or not _same_values(state[name], tensor)]
    return f"its weight '{changed[0]}' differs" if changed else None


def _same_values(loaded: Tensor, saved: Tensor) -> bool:
    """Return whether a weight has the values that were saved. Loading may have put them into a longer type."""
    longer = torch.promote_types(loaded.dtype, saved.dtype)
    return _same_bytes(loaded, saved.detach().to(longer))


def _same_bytes(left: Tensor, right: Tensor) -> bool:
    right = right.detach().cpu()
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    one, other = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right))
    return torch.equal(one, other)


def _differing_setting(model: Any, directory: Path) -> str | None:
    stored = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    ours, theirs = (_plain(config.to_dict()) for config in (model.config, stored))
    key = next((key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)), None)
    return None if key is None else f"its config.json has another {key}"


def _plain(value: Any) -> Any:
    """Return JSON values without the keys that saving may change. Among them is dropout, which no evaluation has."""
    if isinstance(value, Mapping):
        items = ((str(key), item) for key, item in value.items())
        return {
            key: _plain(item)
            for key, item in items
            if key not in _VOLATILE and not (isinstance(item, float) and may_be_random(key))
        }
    return (
        [_plain(item) for item in value]
        if isinstance(value, list | tuple)
        else json.loads(json.dumps(value, default=str))
    )
