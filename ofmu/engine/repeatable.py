"""Check that a model is the same function at every pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ofmu.engine.base import Engine
from ofmu.engine.cost import CostTracker
from ofmu.errors import ModelError
from ofmu.losses import Loss

RowT = TypeVar("RowT")

_GPU_TOLERANCE = 1e-3
"""Kernels on a GPU may add in another order at each pass."""


def check_repeatable(engine: Engine, loss: Loss[RowT], rows: Sequence[RowT]) -> None:
    """Compute the gradient of one row per rank twice, and compare. The two passes are not counted as costs; collective.

    Args:
        engine: computes the gradients.
        loss: a loss of the model.
        rows: rows of the task, of which the first ones are used.

    Raises:
        ModelError: the gradients differ, since the model draws random numbers in training mode.
        NonFiniteLossError: the loss is NaN or infinite.
    """
    chosen, tracker = list(rows[: engine.world_size]), engine.cost_tracker
    engine.cost_tracker = CostTracker()
    try:
        _, first = engine.gradient(loss, chosen)
        _, second = engine.gradient(loss, chosen)
    finally:
        engine.cost_tracker = tracker
    space = engine.space
    size = space.norm(first)
    space.add(second, first, -1.0)
    apart = space.norm(second)
    if apart > (0.0 if engine.device.type == "cpu" else _GPU_TOLERANCE * size):
        share = f" by {apart / size:.0%}" if size else ""
        raise ModelError(
            f"Two gradients of the same rows differ{share}, so the model draws random numbers while it trains: "
            "switch this off in its config.json"
        )
