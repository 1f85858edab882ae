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


class SavedClassifier:
    """A saved classifier in fp32, loaded to be scored.

    Args:
        model: a directory or a hub name.
        class_names: the data's classes.
        config: the run. It gives the device and the size of images.

    Raises:
        ModelError: the model cannot be loaded, or has another number of classes.
    """

    def __init__(self, model: str | Path, class_names: tuple[str, ...], config: UnlearnConfig) -> None:
        directory = local_directory(str(model))
        self.class_names = class_names
        self._model = load_classifier(directory, class_names)
        freeze_statistics(self._model)
        self._model.to(resolve_device(config.engine))
        normalisation = Normalisation.of_model(directory, config.data.vision.image_size)
        self._loss = ImageLoss(normalisation, len(class_names))

    def score(self, data: ImageData, config: UnlearnConfig, *, name: str) -> ImageScores:
        """Score the classifier on every set. ``name``: the classifier's name in reports."""
        batch_size = config.evaluation.batch_size
        return score_images(self._model, self._loss, data, batch_size=batch_size, seed=config.seed, name=name)


def score_saved_images(model: str | Path, data: ImageData, config: UnlearnConfig, *, name: str) -> ImageScores:
    """Load a saved classifier in fp32 and score the classifier on every set: see :class:`SavedClassifier`."""
    return SavedClassifier(model, data.class_names, config).score(data, config, name=name)


def resolve_image_reference(path: str | Path, config: UnlearnConfig, data: ImageData) -> ImageScores:
    """Return reference scores from a file of this package, or from a saved model. A saved model is scored here.

    Raises:
        OfmuError: there are no usable scores at ``path``.
    """
    file = reference_scores_file(path)
    return score_saved_images(path, data, config, name=str(path)) if file is None else ImageScores.load(file)
