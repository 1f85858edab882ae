"""Seeded minibatches: every rank draws the same global ones, and a checkpoint continues the same sequence."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

RowT = TypeVar("RowT")


class MinibatchSampler(Generic[RowT]):
    """Draws minibatches without replacement, epoch after epoch, each epoch shuffled by (seed, name, epoch).

    A minibatch may span two epochs; where there are fewer rows than ``batch_size``, it holds all of them once.

    Raises:
        ValueError: there are no rows.
    """

    def __init__(self, rows: Sequence[RowT], batch_size: int, seed: int, name: str) -> None:
        if not rows:
            raise ValueError(f"the {name} set has no rows")
        self._rows = rows
        self._size = min(batch_size, len(rows))
        self._entropy = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")
        self.position = 0
        """Rows drawn so far; the sampler's whole state."""
        self._epoch = -1
        self._order: list[int] = []

    def draw(self) -> list[RowT]:
        """Return the next minibatch."""
        batch = [self._row(self.position + offset) for offset in range(self._size)]
        self.position += self._size
        return batch

    def _row(self, position: int) -> RowT:
        epoch, index = divmod(position, len(self._rows))
        if epoch != self._epoch:
            generator = np.random.default_rng([self._entropy, epoch])
            self._order, self._epoch = generator.permutation(len(self._rows)).tolist(), epoch
        return self._rows[self._order[index]]
