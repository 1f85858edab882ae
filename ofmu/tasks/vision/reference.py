"""Scoring of saved image classifiers, alone and for ``ofmu evaluate``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ofmu.engine import resolve_device
from ofmu.errors import DataError
from ofmu.evaluation.metrics.custom import with_functions
from ofmu.evaluation.yardsticks import yardsticks
from ofmu.io.environment import environment
from ofmu.io.files import write_json
from ofmu.models.language import local_directory
from ofmu.run_config import UnlearnConfig
from ofmu.vision.data import load_images
from ofmu.vision.loss import ImageLoss
from ofmu.vision.metrics import metrics_of_images
from ofmu.vision.model import freeze_statistics, load_classifier
from ofmu.vision.pixels import Normalisation
from ofmu.vision.rows import ImageData
from ofmu.vision.scores import ImageScores, require_same_images, score_images


def evaluate_images(
    model: str | Path,
    config: UnlearnConfig,
    *,
    reference: str | Path | None = None,
    output_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Score a saved classifier and return what ``metrics.json`` holds; see :func:`ofmu.evaluation.evaluate`.

    Raises:
        OfmuError: the model, data or reference cannot be read, or the reference covers other images.
    """
    started = time.monotonic()
    data = load_images(config.data, config.seed)
    reference = _chosen_reference(config) if reference is None else reference
    # The reference comes first: if it does not fit, that is said before the model is scored.
    expected = None if reference is None else resolve_image_reference(reference, config, data)
    if expected is not None:
        require_same_images(expected, data.content_hash, str(model))
    scores = score_saved_images(model, data, config, name=str(model))
    measure = with_functions(metrics_of_images, config.evaluation.functions)
    measured = measure(scores, expected)
    report = measured.to_json() | {
        "model": str(model),
        "reference": None if reference is None else str(reference),
        "yardsticks": yardsticks(config, expected, ImageScores.load, measure),
        "data_hash": data.content_hash,
        "seconds": time.monotonic() - started,
        "environment": environment(),
        "config": config.model_dump(mode="json"),
    }
    if output_dir is not None:
        scores.save(Path(output_dir) / "scores.json")
        write_json(Path(output_dir) / "metrics.json", report)
    return report


def score_saved_images(model: str | Path, data: ImageData, config: UnlearnConfig, *, name: str) -> ImageScores:
    """Load a classifier in fp32 and score it on every set.

    Raises:
        ModelError: it cannot be loaded, or knows another number of classes.
    """
    directory = local_directory(str(model))
    network = load_classifier(directory, data.class_names)
    freeze_statistics(network)
    network.to(resolve_device(config.engine))
    normalisation = Normalisation.of_model(directory, config.data.vision.image_size)
    loss = ImageLoss(normalisation, len(data.class_names))
    return score_images(network, loss, data, batch_size=config.evaluation.batch_size, seed=config.seed, name=name)


def resolve_image_reference(path: str | Path, config: UnlearnConfig, data: ImageData) -> ImageScores:
    """Return reference scores from a file of ours, or from a saved model that is scored here.

    Raises:
        OfmuError: nothing usable is there.
    """
    place = Path(path)
    if place.is_dir() and not (place / "config.json").is_file() and (place / "scores.json").is_file():
        place = place / "scores.json"
    if place.is_file():
        return ImageScores.load(place)
    if place.suffix == ".json":
        raise DataError(f"There is no reference file {path}: check the name")
    return score_saved_images(path, data, config, name=str(path))


def _chosen_reference(config: UnlearnConfig) -> str | Path | None:
    if config.reference.source == "retrain":
        from ofmu.preparer import find_reference_scores

        return find_reference_scores(config)
    return config.reference.path if config.reference.source in ("model", "scores") else None
