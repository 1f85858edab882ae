"""Checkpoints of a training: parameters, moments of AdamW, and where the loop is. The parameters as a vector space."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ofmu.checkpointing import LocalCheckpointer
from ofmu.engine.checkpoint import Layout, load_checkpoint, save_checkpoint
from ofmu.vectors.base import Segment, Vector, VectorSpace, sum_over_ranks

CHECKPOINT_SECONDS = 120.0
"""Seconds of training after which the next end of an epoch writes a checkpoint, which holds three copies of a model."""


@dataclass
class Position:
    """Where a training is, at the end of an epoch."""

    epoch: int = 0
    """Epochs that are done."""
    step: int = 0
    """Optimizer steps that are done."""
    loss: float = float("nan")
    """Mean loss of the last epoch."""
    tokens: int = 0
    """Tokens read, without padding."""
    seconds: float = 0.0
    """Seconds of earlier attempts."""


class TrainingCheckpoints:
    """The checkpoints of one training.

    Args:
        directory: where they are kept. All ranks see the directory. None: there are no checkpoints.
        layout: the layout of the parameters.
        rank: this process's rank.
        world_size: number of ranks.
    """

    def __init__(self, directory: Path | None, layout: Layout, rank: int = 0, world_size: int = 1) -> None:
        self._directory, self._layout, self._rank, self._world_size = directory, layout, rank, world_size
        self._saved = time.perf_counter()
        self._checkpointer = None if directory is None else LocalCheckpointer(directory, rank)

    def latest(self) -> tuple[Position, dict[str, Vector]] | None:
        """Return the position and the vectors of the newest complete checkpoint; None without one."""
        found = None if self._checkpointer is None else self._checkpointer.latest_checkpoint()
        if found is None:
            return None
        state, vectors = load_checkpoint(found, self._layout)
        return Position(**state), vectors

    def on_epoch_end(self, position: Position, vectors: Callable[[], dict[str, Vector]]) -> None:
        """Write a checkpoint if the last one is old enough; collective.

        Args:
            position: where the training is.
            vectors: returns parameters and moments.

        Raises:
            StorageError: the checkpoint cannot be written.
        """
        if self._checkpointer is None or not self._is_due():
            return

        def write(directory: Path) -> None:
            save_checkpoint(directory, self._layout, vectors(), asdict(position), self._rank, self._world_size)

        self._checkpointer.on_round_end({"outer_step": position.epoch}, write)
        self._saved = time.perf_counter()

    def _is_due(self) -> bool:
        """Return rank 0's decision. The clocks of the ranks differ."""
        due = self._rank == 0 and time.perf_counter() - self._saved >= CHECKPOINT_SECONDS
        if self._world_size == 1:
            return due
        return bool(sum_over_ranks(torch.tensor([float(due)], dtype=torch.float64))[0])

    def delete(self) -> None:
        """Delete all checkpoints, since the training is over."""
        if self._directory is not None and self._rank == 0:
            shutil.rmtree(self._directory, ignore_errors=True)


class ParameterSpace(VectorSpace):
    """The space of a module's trainable parameters where they are: one flat tensor each, in the parameter's storage."""

    replicated = True

    def __init__(self, model: nn.Module) -> None:
        self._named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters."""
        return [value for _, value in self._named]

    def masters(self) -> Vector:
        """Return the parameters, flattened. These are the live tensors, no copies."""
        return [value.detach().view(-1) for _, value in self._named]

    def _master(self, index: int) -> Tensor:
        # A list of all parameters for each of them would take the time of their number squared.
        return self._named[index][1].detach().view(-1)

    def sync_model(self) -> None:
        """Do nothing, since the masters are the parameters."""

    def clear_gradient(self) -> None:
        """Discard the gradient of every parameter."""
        for _, value in self._named:
            value.grad = None

    @torch.no_grad()
    def add_gradient(self, into: Vector, scale: float) -> None:
        """Add ``scale`` times the gradients. A parameter that the loss does not depend on has no gradient."""
        for part, (_, value) in zip(into, self._named, strict=True):
            if value.grad is not None:
                part.add_(value.grad.flatten(), alpha=scale)

    def gradient(self) -> Vector:
        """Return the gradients, flattened: the live tensors, and zeros where a parameter has none."""
        return [
            torch.zeros_like(value).view(-1) if value.grad is None else value.grad.flatten() for _, value in self._named
        ]

    def segments(self) -> list[Segment]:
        """Return one segment per parameter."""
        return [Segment(name, 0, value.numel(), index, 0) for index, (name, value) in enumerate(self._named)]

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of the parameters."""
        return {name: value.shape for name, value in self._named}

    def gather_each(self, vector: Vector) -> Iterator[tuple[str, Tensor]]:
        """Yield views of the vector by parameter name."""
        for (name, value), part in zip(self._named, vector, strict=True):
            yield name, part.view_as(value)
