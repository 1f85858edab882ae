"""The protocol of a task: the rows to forget and to retain, the loss on them, the model, and the metrics.

Methods and the trainer know only this protocol. So the same code unlearns text and images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from ofmu.data.kinds import TaskKind
from ofmu.engine.base import Engine
from ofmu.evaluation.metrics.summary import Metrics
from ofmu.evaluation.robustness.result import RobustnessResult
from ofmu.losses import RowwiseLoss
from ofmu.models.sharded_loading import ShardWeight
from ofmu.models.weight_stream import WeightStream

RowT = TypeVar("RowT")


class Task(Protocol[RowT]):
    """One unlearning problem, loaded and encoded."""

    @property
    def kind(self) -> TaskKind:
        """What is unlearned: text or images."""

    @property
    def forget_rows(self) -> Sequence[RowT]:
        """D_f, encoded."""

    @property
    def retain_rows(self) -> Sequence[RowT]:
        """D_r, encoded."""

    @property
    def loss(self) -> RowwiseLoss[RowT]:
        """L_f and L_r: the token-mean negative log-likelihood of the answer for text, cross-entropy for images."""

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of all rows."""

    @property
    def saved_dtype(self) -> torch.dtype:
        """The type of the saved weights. The weights are rounded to this type before they are scored."""

    def load_model(self, *, double_backward: bool, shard: ShardWeight | None = None) -> nn.Module:
        """Load the target model in fp32.

        Args:
            double_backward: the model must have second derivatives.
            shard: keeps this rank's piece of each weight. A task may load the whole model nevertheless.
        """

    def score(self, engine: Engine) -> Any:
        """Score the engine's model; collective. Every rank gets all scores. The scores have ``save(path)``."""

    def metrics(self, scores: Any, reference: Path | None) -> Metrics:
        """Return the metrics of ``scores``. ``reference`` is the file of the reference's scores."""

    def save(self, model: nn.Module, directory: Path, weights: WeightStream) -> None:
        """Save ``weights`` in the form that ``from_pretrained`` loads. Only rank 0 calls this method."""


@runtime_checkable
class RobustnessTask(Protocol):
    """A task whose config may ask for attacks on a run's model, and for the model's divergence from the target."""

    def keep_target(self, engine: Engine, directory: Path) -> None:
        """Keep what the divergence needs of the target. The engine's model is the target now.

        Args:
            engine: the engine, before any step.
            directory: a directory on the disk that takes large files.
        """

    def measure(self, engine: Engine) -> dict[str, RobustnessResult]:
        """Return what is measured on the engine's model, by part; collective. Empty: nobody asked.

        Parts are the divergence from the target, and the tasks of lm-eval. The first rank's result counts.
        """

    def attack(
        self, model: Path, measured: Metrics, reference: Path | None, retrained: Path | None
    ) -> dict[str, RobustnessResult]:
        """Return what the attacks on a saved model give, by attack, and the depth of its forgetting.

        Only rank 0 calls this. Empty: nobody asked.

        Args:
            model: the directory of the saved model.
            measured: the model's metrics.
            reference: the file of the reference's scores, or None.
            retrained: the directory of the retrained model, if preparation made one.
        """
