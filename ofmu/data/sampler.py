"""Seeded draws of rows: minibatches of a training, and samples of a set.

Every rank draws the same global minibatches, and a checkpoint continues the same sequence.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

RowT = TypeVar("RowT")

_GROUPED_MINIBATCHES = 50
"""Minibatches whose rows are sorted by length together, where rows of similar length share a minibatch."""


class MinibatchSampler(Generic[RowT]):
    """Draws minibatches without replacement, epoch after epoch.

    A minibatch may span two epochs, unless rows are grouped by length. If there are fewer rows than ``batch_size``, a
    minibatch holds every row once.

    Args:
        rows: the rows to draw from.
        batch_size: rows per minibatch.
        seed: seed of the order of the rows.
        name: name of the set. Sets with different names have different orders.
        length: tokens of a row. Rows of similar length then share a minibatch, and the minibatches of an epoch come in
            random order. If their size does not divide the rows, some minibatches are smaller.

    Raises:
        ValueError: there are no rows.
    """

    def __init__(
        self,
        rows: Sequence[RowT],
        batch_size: int,
        seed: int,
        name: str,
        length: Callable[[RowT], int] | None = None,
    ) -> None:
        if not rows:
            raise ValueError(f"the {name} set has no rows")
        self._rows = rows
        self._size = min(batch_size, len(rows))
        self._lengths = None if length is None else [length(row) for row in rows]
        self._entropy = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")
        self.position = 0
        """Number of rows drawn. This number is the whole state of the sampler."""
        self._epoch = -1
        self._order: list[int] = []
        self._ends: list[int] = []

    def draw(self) -> list[RowT]:
        """Return the next minibatch."""
        batch = [self._row(self.position + offset) for offset in range(self._next_size())]
        self.position += len(batch)
        return batch

    def _next_size(self) -> int:
        if self._lengths is None:
            return self._size
        epoch, index = divmod(self.position, len(self._rows))
        self._begin(epoch)
        return next(end for end in self._ends if end > index) - index

    def _row(self, position: int) -> RowT:
        epoch, index = divmod(position, len(self._rows))
        self._begin(epoch)
        return self._rows[self._order[index]]

    def _begin(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        generator = np.random.default_rng([self._entropy, epoch])
        self._order, self._epoch = generator.permutation(len(self._rows)).tolist(), epoch
        if self._lengths is not None:
            batches = grouped_by_length(self._order, self._lengths, self._size)
            batches = [batches[index] for index in generator.permutation(len(batches))]
            # A method may read the first rows of a minibatch alone, which must be a random part of it.
            self._order = [int(index) for batch in batches for index in generator.permutation(batch)]
            self._ends = list(itertools.accumulate(map(len, batches)))


def grouped_by_length(order: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return minibatches of rows of similar length. An order decides which rows of a length share a minibatch.

    Parts of the order are sorted one by one, so that a row meets other rows in every epoch. The minibatches of a part
    differ by at most one row in size.

    Args:
        order: indices of rows.
        lengths: tokens of each row.
        size: most rows of a minibatch.
    """
    batches: list[list[int]] = []
    for start in range(0, len(order), _GROUPED_MINIBATCHES * size):
        part = sorted(order[start : start + _GROUPED_MINIBATCHES * size], key=lengths.__getitem__)
        count = math.ceil(len(part) / size)
        batches += [part[len(part) * i // count : len(part) * (i + 1) // count] for i in range(count)]
    return batches


def sample_in_order(rows: Sequence[RowT], limit: int | None, generator: random.Random) -> tuple[RowT, ...]:
    """Return at most ``limit`` rows, drawn by ``generator``, in the order of ``rows``. ``limit`` None: all rows."""
    if limit is None or len(rows) <= limit:
        return tuple(rows)
    return tuple(rows[index] for index in sorted(generator.sample(range(len(rows)), limit)))
