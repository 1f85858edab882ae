"""Image classifiers: an untrained ResNet from a config, or any saved image classifier of Transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from ofmu.errors import ModelError
from ofmu.models import config as models_config
from ofmu.models.described_size import check_described_size, check_training_size
from ofmu.models.hub import local_directory
from ofmu.models.weights import check_loaded, quiet_loading


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always normalises by its running statistics. Scale and shift stay trainable."""

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stay in evaluation mode."""
        super().train(False)
        return self


def freeze_statistics(model: nn.Module) -> None:
    """Replace every BatchNorm of ``model`` by one that keeps its running statistics in every mode.

    With batch statistics a row's loss would depend on the other rows of its micro-batch. The loss would not be a sum
    over rows, and it would change with the number of ranks.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _frozen(child))


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    frozen.load_state_dict(norm.state_dict())
    if norm.affine:
        frozen.to(norm.weight)
    return frozen.train()


def build_classifier(shape: models_config.ResNetConfig, class_names: Sequence[str], *, seed: int) -> Any:
    """Return an untrained ResNet in fp32. The weights depend on ``seed`` and not on the global random state.

    Raises:
        ModelError: the model cannot be trained in this machine's memory.
    """
    config = ResNetConfig(
        num_channels=3,
        embedding_size=shape.embedding_size,
        hidden_sizes=list(shape.hidden_sizes),
        depths=list(shape.depths),
        layer_type=shape.layer_type,
        **_label_names(class_names),
    )
    check_training_size(lambda: ResNetForImageClassification(config), "model.resnet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNetForImageClassification(config)


def load_classifier(path: str | Path, class_names: Sequence[str], *, new_head_seed: int | None = None) -> Any:
    """Load a classifier in fp32 from safetensors. :func:`freeze_statistics` is left to the caller.

    Args:
        path: a directory or a hub name.
        class_names: the data's classes.
        new_head_seed: seed of a new head, which replaces a head with another number of classes. None: such a head is an
            error.

    Raises:
        ModelError: there is no such model, it is no image classifier, it has another number of classes, or a weight is
            missing, unknown, of another shape, NaN or infinite.
    """
    directory = local_directory(str(path))
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise ModelError(f"The model {path} is a {config.model_type}, no image classifier: name a saved one")
        if new_head_seed is None:
            _check_class_count(directory, config.num_labels, len(class_names))
        elif config.num_labels != len(class_names):
            config.update(_label_names(class_names))
        auto = AutoModelForImageClassification
        check_described_size(lambda: auto.from_config(config, trust_remote_code=False), directory, torch.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(new_head_seed or 0)
            with quiet_loading():
                model, info = AutoModelForImageClassification.from_pretrained(
                    directory,
                    config=config,
                    dtype=torch.float32,
                    use_safetensors=True,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        check_loaded(model, info, path, new_head=new_head_seed is not None)
        return model
    except ModelError:
        raise
    except Exception as error:
        # A directory's files can make Transformers raise anything.
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path} cannot be loaded as an image classifier ({reason}): name a saved one") from error


def _check_class_count(directory: Path, model_classes: int, data_classes: int) -> None:
    if model_classes != data_classes:
        raise ModelError(
            f"The model {directory} has {model_classes} classes, and the data has {data_classes}: name a model of the "
            "data's classes, or set model.is_target to false so that preparation trains a new head"
        )


def _label_names(class_names: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}
