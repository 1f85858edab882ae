"""Image classifiers: transformers' ResNet from a config, or any saved classifier of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from ofmu.errors import ModelError
from ofmu.models import config as shapes
from ofmu.models.language import local_directory


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always normalises by its running statistics; scale and shift stay trainable."""

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stay in evaluation mode."""
        super().train(False)
        return self


def freeze_statistics(model: nn.Module) -> None:
    """Make every BatchNorm of ``model`` keep its running statistics, whatever mode the model is put into.

    A batch's own statistics would make each row's loss depend on the rows beside it: no longer a sum over rows, and
    another one on another number of ranks.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _frozen(child))


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    twin = FrozenBatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin.load_state_dict(norm.state_dict())
    if norm.affine:
        twin.to(norm.weight)
    return twin.train()


def build_classifier(shape: shapes.ResNetConfig, class_names: Sequence[str], *, seed: int) -> Any:
    """Build an untrained fp32 ResNet; the weights depend on ``seed`` alone, not on the global state."""
    config = ResNetConfig(
        num_channels=3,
        embedding_size=shape.embedding_size,
        hidden_sizes=list(shape.hidden_sizes),
        depths=list(shape.depths),
        layer_type=shape.layer_type,
        **_labels(class_names),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNetForImageClassification(config)


def load_classifier(path: str | Path, class_names: Sequence[str], *, new_head_seed: int | None = None) -> Any:
    """Load a classifier in fp32 from a directory or by hub name, safetensors only.

    With ``new_head_seed`` a head for another number of classes is replaced by an untrained one; otherwise it is an
    error. Statistics are not frozen here: see :func:`freeze_statistics`.

    Raises:
        ModelError: there is no such model, it classifies no images, or it knows another number of classes.
    """
    directory = local_directory(str(path))
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise ModelError(f"The model {path} is a {config.model_type}, no image classifier: name a saved one")
        if new_head_seed is None:
            _refuse_other_classes(directory, config.num_labels, len(class_names))
        elif config.num_labels != len(class_names):
            config.update(_labels(class_names))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(new_head_seed or 0)
            return AutoModelForImageClassification.from_pretrained(
                directory,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=new_head_seed is not None,
            )
    except (OSError, KeyError, SafetensorError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path} cannot be loaded as an image classifier ({reason}): name a saved one") from error


def _refuse_other_classes(directory: Path, known: int, wanted: int) -> None:
    if known != wanted:
        raise ModelError(
            f"The model {directory} tells {known} classes apart, and the data has {wanted}: name a model of these "
            "classes, or leave model.is_target out so that preparation trains a new head"
        )


def _labels(class_names: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}
