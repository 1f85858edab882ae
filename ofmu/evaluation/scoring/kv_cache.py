"""Forward passes that build on earlier ones: prompts read once, and a cache that grows without being copied.

The library's own cache joins old and new keys into a fresh tensor at every step; on a small model that copying
takes most of the time of a generation.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

GROWTH = 64
"""Positions by which a cache grows once it is full."""


class PreallocatedCacheLayer(DynamicLayer):  # type: ignore[misc]  # the library gives its caches no usable types
    """Keys and values of one layer with room ahead, so that most updates copy only what is new.

    ``keys`` and ``values`` are views (rows, heads, positions, width) of what is filled; without gradients only.
    """

    def __init__(self) -> None:
        super().__init__()
        self._length = 0
        self._room: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new positions behind the old ones and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before, added = self._length, key_states.shape[-2]
        self._reserve((key_states, value_states), before + added)
        for buffer, states in zip(self._room, (key_states, value_states), strict=True):
            buffer[..., before : before + added, :] = states
        self._length = before + added
        self._view()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices``, which may repeat."""
        if self._length:
            self._room = [buffer[indices] for buffer in self._room]
            self._view()

    def _reserve(self, states: Sequence[Tensor], length: int) -> None:
        if self._room and self._room[0].shape[-2] >= length:
            return
        old, self._room = self._room, []
        for position, state in enumerate(states):
            buffer = state.new_empty((*state.shape[:-2], length + GROWTH, state.shape[-1]))
            if old:
                buffer[..., : self._length, :] = old[position][..., : self._length, :]
            self._room.append(buffer)

    def _view(self) -> None:
        self.keys, self.values = (buffer[..., : self._length, :] for buffer in self._room)


def new_cache(model: Any) -> Any:
    """Return an empty cache in the form that the model's layers ask for."""
    cache = DynamicCache(config=model.config)
    # Layers of another kind (sliding windows, for instance) know best how to keep their states.
    cache.layers = [PreallocatedCacheLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def reads_in_parts(model: Any) -> bool:
    """Return whether a prompt can be read once and continued several times: not where the state is recurrent."""
    return not getattr(model, "_is_stateful", False)


@dataclass
class Prompts:
    """Prompts that the model has read: the cache, and what continues from it row by row."""

    cache: Any
    mask: Tensor
    """Shape (rows, positions so far); 0 on the padding, which stands on the left."""
    positions: Tensor
    """Shape (rows, 1): the position of each row's last token."""
    logits: Tensor
    """Shape (rows, vocabulary): what the model expects next."""

    def select(self, rows: Tensor) -> None:
        """Keep the rows ``rows``, which may repeat."""
        self.cache.batch_select_indices(rows)
        self.mask, self.positions, self.logits = self.mask[rows], self.positions[rows], self.logits[rows]


def read_prompts(model: Any, prompts: Sequence[Sequence[int]], pad: int) -> Prompts:
    """Read prompts, padded on the left, in one forward pass of ``len(prompts)`` times the longest's tokens."""
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = new_cache(model)
    # Logits of a whole prompt would be thrown away, and take the most memory of all where the vocabulary is large.
    last = {"logits_to_keep": 1} if "logits_to_keep" in _arguments(model) else {}
    output = model(
        input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **last, **place(model, positions)
    )
    return Prompts(cache, mask, positions[:, -1:], output.logits[:, -1])


def continue_prompts(model: Any, read: Prompts, ids: Tensor) -> Tensor:
    """Feed each row's next tokens, shape (rows, tokens), padded on the right; return logits (rows, tokens, vocabulary).

    The rows' masks and positions advance by the tokens, padding included: only a row without any can be continued.
    """
    read.mask = torch.cat([read.mask, read.mask.new_ones(ids.shape)], dim=1)
    positions = read.positions + torch.arange(1, ids.shape[1] + 1, device=ids.device)
    read.positions = positions[:, -1:]
    output = model(
        input_ids=ids,
        attention_mask=read.mask,
        past_key_values=read.cache,
        use_cache=True,
        **place(model, positions),
    )
    logits: Tensor = output.logits
    return logits


def place(model: Any, positions: Tensor) -> dict[str, Tensor]:
    """Return the positions as an argument where the model takes one; others count them from the mask."""
    return {"position_ids": positions} if "position_ids" in _arguments(model) else {}


def _arguments(model: Any) -> Collection[str]:
    # An adapter's wrapper passes everything on, so the model inside says what it takes.
    model_class: type = type(model.get_base_model() if hasattr(model, "get_base_model") else model)
    return _arguments_of(model_class)


@lru_cache(maxsize=16)
def _arguments_of(model_class: type) -> frozenset[str]:
    return frozenset(inspect.signature(model_class.forward).parameters)  # type: ignore[attr-defined]
