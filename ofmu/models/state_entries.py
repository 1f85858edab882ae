"""The entries of a model's state dict, which a saved model must hold."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class StateEntry:
    """A parameter or a persistent buffer."""

    names: tuple[str, ...]
    """Its name in the state dict. A tied parameter has several names, and the first one is that of its gradient."""
    tensor: Tensor
    """Its values. Under ZeRO-3, a parameter has only a piece of them."""

    @property
    def is_sharded(self) -> bool:
        """Whether ZeRO-3 has cut the parameter into pieces."""
        return hasattr(self.tensor, "ds_id")


def state_entries(model: nn.Module) -> list[StateEntry]:
    """Return the entries of a model's state dict, but for those that its architecture never saves."""
    saved = model.state_dict().keys() - set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    tensors: dict[int, Tensor] = {}
    names: dict[int, list[str]] = {}
    for name, tensor in chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    ):
        if name in saved:
            tensors[id(tensor)] = tensor
            names.setdefault(id(tensor), []).append(name)
    return [StateEntry(tuple(names[place]), tensor) for place, tensor in tensors.items()]


def is_computed(model: Any, entry: StateEntry) -> bool:
    """Return whether the architecture computes a frozen parameter where files lack it, such as fixed positions.

    A whole parameter is saved all the same. No rank has a whole one under ZeRO-3.
    """
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return (
        entry.is_sharded
        and not entry.tensor.requires_grad
        and any(re.search(pattern, name) for pattern in patterns for name in entry.names)
    )


def missing_entry(model: nn.Module, names: Container[str]) -> str | None:
    """Return the name of an entry of a model's state dict that ``names`` lack; None if they are complete.

    Of tied entries, one is enough.
    """
    missing = (entry for entry in state_entries(model) if not any(name in names for name in entry.names))
    return next((entry.names[0] for entry in missing if not is_computed(model, entry)), None)
