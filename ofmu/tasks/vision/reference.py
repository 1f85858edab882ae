"""Scores of saved image classifiers, and the reference of the gap metrics."""

from __future__ import annotations

from pathlib import Path

from ofmu.engine.build import resolve_device
from ofmu.models.hub import local_directory
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.reference_path import reference_scores_file
from ofmu.vision.loss import ImageLoss
from ofmu.vision.model import freeze_statistics, load_classifier
from ofmu.vision.pixels import Normalisation
from ofmu.vision.rows import ImageData
from ofmu.vision.scores import ImageScores, score_images


def score_saved_images(model: str | Path, data: ImageData, config: UnlearnConfig, *, name: str) -> ImageScores:
    """Load a saved classifier in fp32 and score the classifier on every set.

    Args:
        model: a directory or a hub name.
        data: the images.
        config: the run.
        name: the classifier's name in reports.

    Raises:
        ModelError: the model cannot be loaded, or has another number of classes.
    """
    directory = local_directory(str(model))
    classifier = load_classifier(directory, data.class_names)
    freeze_statistics(classifier)
    classifier.to(resolve_device(config.engine))
    normalisation = Normalisation.of_model(directory, config.data.vision.image_size)
    loss = ImageLoss(normalisation, len(data.class_names))
    batch_size = config.evaluation.batch_size
    return score_images(classifier, loss, data, batch_size=batch_size, seed=config.seed, name=name)


def resolve_image_reference(path: str | Path, config: UnlearnConfig, data: ImageData) -> ImageScores:
    """Return reference scores from a file of this package, or from a saved model. A saved model is scored here.

    Raises:
        OfmuError: there are no usable scores at ``path``.
    """
    file = reference_scores_file(path)
    return score_saved_images(path, data, config, name=str(path)) if file is None else ImageScores.load(file)
