"""The task of unlearning images: CIFAR or the user's own images, and an image classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ofmu.data.kinds import TaskKind
from ofmu.engine.base import Engine
from ofmu.errors import ModelError
from ofmu.evaluation.metrics.custom import with_custom_metrics
from ofmu.evaluation.metrics.summary import Metrics
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.models.language import save_model
from ofmu.models.sharded_loading import ShardWeight
from ofmu.models.weight_stream import WeightStream
from ofmu.run_config import UnlearnConfig
from ofmu.vision.data import load_images
from ofmu.vision.loss import ImageLoss
from ofmu.vision.metrics import metrics_of_images
from ofmu.vision.model import freeze_statistics, load_classifier
from ofmu.vision.pixels import Normalisation
from ofmu.vision.scores import ImageScores, score_images


class VisionTask:
    """Labelled images and a classifier whose BatchNorm keeps the target's running statistics.

    Args:
        config: the run.
        target: directory of the prepared target.

    Raises:
        DataError: the images cannot be loaded.
        ModelError: the target's normalisation cannot be read.
    """

    kind: TaskKind = "vision"

    def __init__(self, config: UnlearnConfig, target: Path) -> None:
        self._config, self._target = config, target
        self._data = load_images(config.data, config.seed)
        normalisation = Normalisation.of_model(target, config.data.vision.image_size)
        self.loss = ImageLoss(normalisation, len(self._data.class_names))
        self.forget_rows = self._data.forget
        self.retain_rows = self._data.retain
        self.content_hash = self._data.content_hash

    @property
    def saved_dtype(self) -> torch.dtype:
        """fp32, the type of the running statistics."""
        return torch.float32

    def load_model(self, *, double_backward: bool, shard: ShardWeight | None = None) -> nn.Module:
        """Load the whole target in fp32 and freeze its statistics. Convolutions always have second derivatives.

        Raises:
            ModelError: the target cannot be loaded, or does not support gradient checkpointing.
        """
        model: Any = load_classifier(self._target, self._data.class_names)
        if self._config.engine.recomputes and not model.supports_gradient_checkpointing:
            raise ModelError(
                f"engine.gradient_checkpointing cannot work with a {model.config.model_type}: set it to false, and "
                "lower engine.micro_batch_size if memory is short"
            )
        freeze_statistics(model)
        return model  # type: ignore[no-any-return]

    def score(self, engine: Engine) -> ImageScores:
        """Score the engine's model on forget, retain and test images; collective."""
        shard = Shard(rank=engine.rank, world_size=engine.world_size, synchronized=engine.zero_stage == 3)
        batch_size, seed = self._config.evaluation.batch_size, self._config.seed
        return score_images(engine.model, self.loss, self._data, batch_size=batch_size, seed=seed, shard=shard)

    def metrics(self, scores: ImageScores, reference: Path | None) -> Metrics:
        """Return the metrics of :func:`ofmu.vision.metrics.metrics_of_images`, and the custom metrics."""
        expected = None if reference is None else ImageScores.load(reference)
        return with_custom_metrics(metrics_of_images, self._config.evaluation.custom_metrics)(scores, expected)

    def save(self, model: nn.Module, directory: Path, weights: WeightStream) -> None:
        """Save ``weights``, the target's statistics, which a run does not change, and the normalisation of inputs."""
        save_model(model, self.loss.normalisation, directory, weights=weights)
