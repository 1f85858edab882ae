"""What a saved model holds besides its trained weights: persistent buffers and frozen parameters.

Among them are the factors of Gemma 4's layers and the biases that balance experts. No training changes them. The
buffers are saved from the model, whose engine keeps them whole and in their type. An engine may round a frozen
parameter or cut it into pieces, so it is read from the files that the model was loaded from, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from ofmu.errors import ModelError
from ofmu.models.sharded_loading import StoredWeights
from ofmu.models.state_entries import StateEntry, is_computed, state_entries
from ofmu.models.weight_stream import WeightStream
from ofmu.models.weights import saves_under_other_names


@dataclass(frozen=True)
class _FixedWeight:
    name: str
    read: Callable[[], Tensor]
    """Returns the values. It may be called several times."""


def with_fixed_weights(model: Any, weights: WeightStream) -> WeightStream:
    """Return the stream with the rest of a model's state dict behind the trained weights.

    A part of this rest has the type of the trained weights if it loses no bit in it, and else its own type.

    Args:
        model: the model. ZeRO-3 may have sharded its parameters.
        weights: the trained weights.

    Raises:
        ModelError: a frozen parameter is sharded, and the files that the model was loaded from are gone.
    """
    rest = [entry for entry in state_entries(model) if not any(name in weights.shapes for name in entry.names)]
    source = _source(model) if any(isinstance(entry.tensor, torch.nn.Parameter) for entry in rest) else None
    shapes, dtypes = dict(weights.shapes), dict(weights.other_dtypes)
    fixed = [_fixed_weight(model, entry, source) for entry in rest if not is_computed(model, entry)]
    for weight in fixed:
        tensor = weight.read()
        shapes[weight.name], dtypes[weight.name] = tensor.shape, _saved_dtype(tensor, weights.dtype)
        del tensor
    values = ((weight.name, weight.read()) for weight in fixed)
    return WeightStream(shapes, weights.dtype, chain(weights.tensors, values), dtypes)


def _source(model: Any) -> StoredWeights | None:
    """Return the weights that the model was loaded from; None if there are none."""
    source = getattr(model, "name_or_path", "")
    try:
        return StoredWeights(Path(source)) if source and Path(source).is_dir() else None
    except (OSError, SafetensorError):
        return None


def _fixed_weight(model: Any, entry: StateEntry, source: StoredWeights | None) -> _FixedWeight:
    whole = _FixedWeight(entry.names[0], lambda: entry.tensor)
    if not isinstance(entry.tensor, torch.nn.Parameter):
        return whole
    stored = None if source is None else _stored_weight(model, entry, source)
    if not entry.is_sharded:
        # A parameter that somebody has set since the model was loaded is not that of the files.
        return stored if stored is not None and _is_rounded(entry.tensor, stored.read()) else whole
    if stored is None:
        raise ModelError(
            f"The frozen weight '{entry.names[0]}' cannot be saved, since the files of the model "
            f"{model.name_or_path}, where it was read, do not hold it now: restore them"
        )
    return stored


def _stored_weight(model: Any, entry: StateEntry, source: StoredWeights) -> _FixedWeight | None:
    """Return a parameter as it is in the files; None if they hold it in another form."""
    shape = getattr(entry.tensor, "ds_shape", entry.tensor.shape)
    for name in entry.names:
        stored_name = _stored_name(model, name, shape)
        if source.shapes.get(stored_name) == shape:
            return _FixedWeight(name, partial(source.read, stored_name))
    return None


def _stored_name(model: Any, name: str, shape: torch.Size) -> str:
    """Return the name under which Transformers stores a weight."""
    if not saves_under_other_names(model):
        return name
    names = iter(revert_weight_conversion(model, {name: torch.empty(shape, device="meta")}))
    return next(names, name)


def _is_rounded(values: Tensor, stored: Tensor) -> bool:
    """Return whether rounding the stored weight gives the values."""
    return torch.equal(values.detach().cpu(), stored.to(values.dtype))


def _saved_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    is_exact = tensor.is_floating_point() and torch.equal(tensor, tensor.to(dtype).to(tensor.dtype))
    return dtype if is_exact else tensor.dtype
