"""Check that a model is the same function at every pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ofmu.engine.base import Engine
from ofmu.engine.cost import CostTracker
from ofmu.errors import ModelError
from ofmu.losses import Loss

RowT = TypeVar("RowT")

_GPU_TOLERANCE = 1e-3
"""Kernels on a GPU may add in another order at each pass."""


def check_repeatable(engine: Engine, loss: Loss[RowT], rows: Sequence[RowT]) -> None:
    """Compute the gradient of one row per rank twice, and compare. The two passes are not counted as costs; collective.

    The passes must leave the persistent buffers as they are too. A run stores the parameters of its rounds, and those
    of its checkpoints, without buffers.

    Args:
        engine: computes the gradients.
        loss: a loss of the model.
        rows: rows of the task, of which the first ones are used.

    Raises:
        ModelError: the gradients differ, since the model draws random numbers in training mode; or a buffer changes.
        NonFiniteLossError: the loss is NaN or infinite.
    """
    chosen, tracker = list(rows[: engine.world_size]), engine.cost_tracker
    engine.cost_tracker = CostTracker()
    before = {name: buffer.clone() for name, buffer in _persistent_buffers(engine.model).items()}
    try:
        _, first = engine.gradient(loss, chosen)
        _, second = engine.gradient(loss, chosen)
    finally:
        engine.cost_tracker = tracker
    for name, buffer in _persistent_buffers(engine.model).items():
        if not torch.equal(buffer, before[name]):
            raise ModelError(
                f"The model changes its buffer '{name}' while it trains, and no checkpoint of a run would hold that: "
                "name another model"
            )
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


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}
