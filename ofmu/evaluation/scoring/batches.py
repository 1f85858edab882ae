"""Batches of rows for forward passes: little padding in few passes, under the memory of a batch of the longest rows.

Batches depend on the rows of one evaluation set alone, and not on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

BatchT = TypeVar("BatchT")

PASS_TOKENS = 32
"""What one more forward pass costs, in tokens that the same time would read. One thread of a CPU measures 7 for a model
of 135M parameters, 14 to 28 for models of 25M to .1M, and 190 for a test model of two tiny blocks."""
MORE_ROWS = 2
"""A batch of short rows holds up to this many times ``evaluation.batch_size`` rows. A bound on tokens
alone would let what grows with the rows grow without bound, such as the copies of a prompt's cache. Four times as many
rows gain nothing on TOFU."""


def partition(
    widths: Sequence[int],
    overhead: int,
    most: Callable[[int], int],
    loads: Sequence[int] | None = None,
    most_load: int = 0,
) -> list[tuple[int, int]]:
    """Cut rows into consecutive batches so that their padded tokens and an overhead per batch are least in sum.

    Args:
        widths: tokens of each row, in increasing order.
        overhead: cost of a batch, in tokens.
        most: the most rows of a batch whose widest row has this many tokens. A batch of one row always fits.
        loads: what each row adds to its batch beside tokens. None: nothing.
        most_load: upper bound on the sum of the loads of a batch of several rows.

    Returns:
        The start and the end of each batch. Of equally good cuts, the one with the smallest last batch.
    """
    if any(first > second for first, second in pairwise(widths)):
        raise ValueError("rows must be ordered by their tokens")
    total = len(widths)
    summed = np.concatenate([[0], np.cumsum(loads)]) if loads is not None else None
    best = np.zeros(total + 1, dtype=np.int64)
    starts = [0] * (total + 1)
    for end in range(1, total + 1):
        width = widths[end - 1]
        rows = min(end, most(width))
        if summed is not None:
            rows = min(rows, end - int(np.searchsorted(summed, summed[end] - most_load)))
        sizes = np.arange(1, max(1, rows) + 1)
        costs = best[end - sizes] + sizes * width + overhead
        chosen = int(costs.argmin())
        best[end], starts[end] = costs[chosen], end - int(sizes[chosen])
    cuts, end = list[tuple[int, int]](), total
    while end:
        cuts.append((starts[end], end))
        end = starts[end]
    return cuts[::-1]


def global_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of indices in order of length, for passes that read each row once and as a whole.

    No batch reads more tokens than ``batch_size`` of the longest rows, or all of them if they are fewer. Short rows
    share larger batches, up to ``MORE_ROWS * batch_size`` rows. Equal lengths keep their order.
    """
    if not lengths:
        return []
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    tokens = min(batch_size, len(lengths)) * max(lengths)
    cuts = partition(
        [lengths[index] for index in order],
        PASS_TOKENS,
        lambda width: min(MORE_ROWS * batch_size, tokens // max(1, width)),
    )
    return [order[start:end] for start, end in cuts]


def row_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of ``batch_size`` indices in order of length. Equal lengths keep their order.

    These batches suit generation. Each of its batches takes as many passes as its longest answer has tokens, and caches
    that many for each row. The answers are not known before, so neither more rows nor more batches would pay.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batches_by_label(labels: Sequence[str], make_batches: Callable[[list[int]], list[BatchT]]) -> list[BatchT]:
    """Return batches of indices. All indices of a batch have the same label.

    With the evaluation set as label, a row shares its batch only with rows of its own set. So the row's scores are the
    same to the last bit, whatever other sets are scored.

    Args:
        labels: the label of each index.
        make_batches: forms batches of the indices with one label.
    """
    members: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    return [batch for indices in members.values() for batch in make_batches(indices)]
