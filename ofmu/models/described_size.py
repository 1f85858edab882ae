"""The size of a model: what its config asks for must fit its weights, and this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ofmu.errors import ModelError
from ofmu.models.files import stored_values

_TOLERANCE = 2.0
"""A model may have this many times the values of its weights, such as tied embeddings and a new head."""
_MAX_BUFFER_VALUES = 10**9
"""Buffers, such as causal masks, are not in the weights."""
_TRAINING_COPIES = 4
"""Copies of the weights that AdamW needs: weights, gradient and two moments."""


def check_described_size(
    build: Callable[[], nn.Module], directory: Path, dtype: torch.dtype, share: float = 1.0
) -> nn.Module:
    """Check that a model is as large as its weights, and that one copy fits into memory. Nothing is allocated.

    Return the model that the config describes, on the meta device.

    Args:
        build: makes the model from its config.
        directory: the model's directory.
        dtype: the type in which the model will be loaded.
        share: the part of the model that this machine will hold.

    Raises:
        ModelError: there are no weights, the config describes a model of another size than the weights, or the model
            exceeds the memory.
    """
    stored = stored_values(directory)
    if not stored:
        raise ModelError(
            f"The model directory {directory} cannot be loaded, since its *.safetensors hold no weights or are "
            "damaged: copy or download the model again"
        )
    with torch.device("meta"):
        model = build()
    described = sum(weight.numel() for weight in model.parameters())
    buffers = sum(buffer.numel() for buffer in model.buffers())
    if described > _TOLERANCE * stored + 10**6 or buffers > max(_MAX_BUFFER_VALUES, _TOLERANCE * stored):
        raise ModelError(
            f"The config.json of {directory} describes {described:,} weights and {buffers:,} other values, and the "
            f"directory holds {stored:,} values: name a model with its own config.json"
        )
    _check_memory(
        f"The model {directory}" if share == 1 else f"This machine's part of the model {directory}",
        described * dtype.itemsize * share,
    )
    return model


def check_training_size(build: Callable[[], nn.Module], section: str) -> None:
    """Check that a model that a config describes can be trained in this machine's memory. Nothing is allocated.

    Args:
        build: makes the model.
        section: the config section that describes the model, for errors.

    Raises:
        ModelError: weights, gradient and moments exceed the memory.
    """
    try:
        with torch.device("meta"):
            model = build()
    except (RuntimeError, OverflowError) as error:  # a weight has more values than torch can count
        raise ModelError(f"{section} describes a model that is too large to count: lower its sizes") from error
    values = sum(weight.numel() for weight in model.parameters())
    _check_memory(f"Training the model of {section}", values * 4 * _TRAINING_COPIES, f": lower the sizes in {section}")


def _check_memory(what: str, needed: float, fix: str = ": name a smaller model") -> None:
    memory = _memory()
    if needed > memory:
        raise ModelError(f"{what} takes {needed / 2**30:,.1f} GiB, and this machine has {memory / 2**30:,.1f} GiB{fix}")


def _memory() -> float:
    """Return the bytes of this machine's memory; infinity if the system does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return math.inf
