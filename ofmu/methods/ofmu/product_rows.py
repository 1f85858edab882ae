"""Hessian-vector products on a share of a minibatch's rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ofmu.engine.base import Engine
from ofmu.losses import Loss
from ofmu.vectors.base import Vector

RowT = TypeVar("RowT")


def counted_rows(rows: int, share: float) -> int:
    """Return the number of a minibatch's rows on which products are computed: at least one."""
    return max(1, math.ceil(share * rows))


def counted_share(rows: int, share: float) -> float:
    """Return what a pass over :func:`counted_rows` of ``rows`` rows counts, of a whole gradient evaluation."""
    count = counted_rows(rows, share)
    # A whole number keeps counts of whole passes whole numbers.
    return count / rows if count < rows else 1


class ProductEngine:
    """An engine whose passes read the first rows of each minibatch only.

    A minibatch is drawn in random order, so its first rows are a random part of it. A pass over a share of the rows
    counts as that share of its gradient evaluations.

    Args:
        engine: computes the passes.
        share: the share of the rows.
    """

    def __init__(self, engine: Engine, share: float) -> None:
        self._engine, self._share = engine, share

    def gradient(self, loss: Loss[RowT], rows: Sequence[RowT], **options: Any) -> tuple[float, Vector]:
        """Return :meth:`ofmu.engine.base.Engine.gradient` on the first rows."""
        with self._first(rows) as first:
            return self._engine.gradient(loss, first, **options)

    def hvp(self, loss: Loss[RowT], rows: Sequence[RowT], vector: Vector, **options: Any) -> Vector:
        """Return :meth:`ofmu.engine.base.Engine.hvp` on the first rows."""
        with self._first(rows) as first:
            return self._engine.hvp(loss, first, vector, **options)

    def hvp_derivative(
        self, loss: Loss[RowT], rows: Sequence[RowT], vector: Vector, along: Vector, **options: Any
    ) -> None:
        """Add :meth:`ofmu.engine.base.Engine.hvp_derivative` on the first rows."""
        with self._first(rows) as first:
            self._engine.hvp_derivative(loss, first, vector, along, **options)

    @contextmanager
    def _first(self, rows: Sequence[RowT]) -> Iterator[Sequence[RowT]]:
        with self._engine.cost_tracker.counting(counted_share(len(rows), self._share)):
            yield rows[: counted_rows(len(rows), self._share)]
