"""Seeded draws of rows: minibatches of a training, and samples of a set.

Every rank draws the same global minibatches, and a checkpoint continues the same sequence.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

RowT = TypeVar("RowT")


class MinibatchSampler(Generic[RowT]):
    """Draws minibatches without replacement, epoch after epoch.

    A minibatch may span two epochs. If there are fewer rows than ``batch_size``, a minibatch holds every row once.

    Args:
        rows: the rows to draw from.
        batch_size: rows per minibatch.
        seed: seed of the order of the rows.
        name: name of the set. Sets with different names have different orders.

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
        """Number of rows drawn. This number is the whole state of the sampler."""
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


def sample_in_order(rows: Sequence[RowT], limit: int | None, generator: random.Random) -> tuple[RowT, ...]:
    """Return at most ``limit`` rows, drawn by ``generator``, in the order of ``rows``. ``limit`` None: all rows."""
    if limit is None or len(rows) <= limit:
        return tuple(rows)
    return tuple(rows[index] for index in sorted(generator.sample(range(len(rows)), limit)))
