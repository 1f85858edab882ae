"""Save the weights of an engine. Each weight is gathered when rank 0 writes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from ofmu.engine.rank_zero import on_rank_0
from ofmu.models.weight_stream import WeightStream
from ofmu.vectors.base import VectorSpace


def save_on_rank_0(space: VectorSpace, dtype: torch.dtype, save: Callable[[WeightStream], object]) -> None:
    """Call ``save`` on rank 0 with the parameters as a stream of ``dtype``; collective.

    The other ranks wait until ``save`` returns, which may have to read again what it wrote.

    Raises:
        OfmuError: ``save`` raised it on rank 0.
    """
    gathered = space.gather_parameters()

    def gather_rest() -> None:
        deque(gathered, maxlen=0)

    def write() -> None:
        try:
            save(WeightStream(space.shapes(), dtype, gathered))
        finally:
            # Every rank takes part in gathering each weight, also after rank 0 failed to write one.
            gather_rest()

    on_rank_0(write, meanwhile=gather_rest)
