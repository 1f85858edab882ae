"""A task whose rows are in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from ofmu.data.kinds import TaskKind
from ofmu.engine.base import Engine
from ofmu.evaluation.metrics.summary import Metrics
from ofmu.losses import RowwiseLoss
from ofmu.models.sharded_loading import ShardWeight
from ofmu.models.weight_stream import WeightStream

RowT = TypeVar("RowT")


class MemoryTask(Generic[RowT]):
    """Rows and a loss: everything that a method reads of a task. The task has no model and cannot score one."""

    content_hash = "in memory"
    saved_dtype = torch.float32

    def __init__(
        self, kind: TaskKind, forget_rows: Sequence[RowT], retain_rows: Sequence[RowT], loss: RowwiseLoss[RowT]
    ) -> None:
        self.kind: TaskKind = kind
        self.forget_rows = forget_rows
        self.retain_rows = retain_rows
        self.loss = loss

    def load_model(self, *, double_backward: bool, shard: ShardWeight | None = None) -> nn.Module:
        """Raise NotImplementedError: the caller of the method builds the model."""
        raise NotImplementedError

    def score(self, engine: Engine) -> Any:
        """Raise NotImplementedError: the task has no evaluation sets."""
        raise NotImplementedError

    def metrics(self, scores: Any, reference: Path | None) -> Metrics:
        """Raise NotImplementedError: the task has no scores."""
        raise NotImplementedError

    def save(self, model: nn.Module, directory: Path, weights: WeightStream) -> None:
        """Raise NotImplementedError: the task has no model."""
        raise NotImplementedError
