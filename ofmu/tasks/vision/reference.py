"""Scores of saved image classifiers, and the reference of the gap metrics."""

from __future__ import annotations

from pathlib import Path

from ofmu.engine.build import resolve_device
from ofmu.errors import DataError
from ofmu.models.language import local_directory
from ofmu.run_config import UnlearnConfig
from ofmu.vision.loss import ImageLoss
from ofmu.vision.model import freeze_statistics, load_classifier
from ofmu.vision.pixels import Normalisation
from ofmu.vision.rows import ImageData
from ofmu.vision.scores import ImageScores, score_images


def score_saved_images(model: str | Path, data: ImageData, config: UnlearnConfig, *, name: str) -> ImageScores:
    """Load a classifier in fp32 and score the classifier on every set.

    Raises:
        ModelError: the model cannot be loaded, or has another number of classes.
    """
    directory = local_directory(str(model))
    network = load_classifier(directory, data.class_names)
    freeze_statistics(network)
    network.to(resolve_device(config.engine))
    normalisation = Normalisation.of_model(directory, config.data.vision.image_size)
    loss = ImageLoss(normalisation, len(data.class_names))
    return score_images(network, loss, data, batch_size=config.evaluation.batch_size, seed=config.seed, name=name)


def resolve_image_reference(path: str | Path, config: UnlearnConfig, data: ImageData) -> ImageScores:
    """Return reference scores from a file of this package, or from a saved model. A saved model is scored here.

    Raises:
        OfmuError: there are no usable scores at ``path``.
    """
    place = Path(path)
    if place.is_dir() and not (place / "config.json").is_file() and (place / "scores.json").is_file():
        place = place / "scores.json"
    if place.is_file():
        return ImageScores.load(place)
    if place.suffix == ".json":
        raise DataError(f"There is no reference file {path}: check the name")
    return score_saved_images(path, data, config, name=str(path))
