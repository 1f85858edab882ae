"""Images that earlier runs forgot, and a classifier's metrics on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ofmu.errors import DataError
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.forgotten import ForgottenRows, Values
from ofmu.tasks.vision.reference import SavedClassifier
from ofmu.vision.data import load_images
from ofmu.vision.earlier import hashes_of, read_images, write_images
from ofmu.vision.metrics import FIELD_METRICS, metrics_of_images
from ofmu.vision.rows import ImageData, ImageRow, rows_hash
from ofmu.vision.scores import ImageScores

METRICS = ("unlearning_accuracy", "mia_efficacy")
"""The metrics of forget images that need no reference."""


class ForgottenImages(ForgottenRows):
    """Labelled images. An image is found again by its pixels."""

    suffix = ".safetensors"

    def of(self, data: ImageData) -> tuple[ImageRow, ...]:
        """Return the forget images."""
        return data.forget

    def write(self, path: Path, rows: Sequence[ImageRow]) -> None:
        """Write images as a safetensors file."""
        write_images(path, rows)

    def read(self, path: Path) -> tuple[ImageRow, ...]:
        """Return the images of a file."""
        return read_images(path)

    def content_hash(self, rows: Sequence[ImageRow]) -> str:
        """Return the hash of pixels and labels."""
        return rows_hash(rows)

    def scoring_of(self, config: UnlearnConfig) -> dict[str, Any]:
        """Return the seed of the membership classifier's rows."""
        return {"seed": config.seed}

    def scorer(self, model: str, config: UnlearnConfig) -> ImageScorer:
        """Return a scorer of a saved classifier."""
        return ImageScorer(model, config)

    def count_left_out(self, before: UnlearnConfig, after: UnlearnConfig) -> int:
        """Return how many training images a chain leaves out."""
        known = load_images(before.data, before.seed).left_out if before.data.earlier else 0
        return load_images(after.data, after.seed).left_out - known

    def check_follows(self, earlier: UnlearnConfig, config: UnlearnConfig) -> None:
        """Check that both runs have the same classes, and that no test image was a training image of the earlier run.

        An image that was a test image of the earlier run as well may be, since benchmarks hold some images twice.
        """
        before, data = _whole_source(earlier), _whole_source(config)
        if before.class_names != data.class_names:
            raise DataError(
                f"The classes of the data are {', '.join(data.class_names)}, and those of the earlier run were "
                f"{', '.join(before.class_names)}: name the data of the earlier run"
            )
        trained = hashes_of((*before.forget, *before.retain)) - hashes_of(before.test)
        count = len(trained & hashes_of(data.test))
        if count:
            raise DataError(
                f"{count} of the {len(data.test)} test images were training images of the earlier run: set the same "
                "seed and data.vision.test_fraction as in the earlier run, or give the images a 'test' folder"
            )


def _whole_source(config: UnlearnConfig) -> ImageData:
    """Return all training and test images of a run's source, whatever the run forgets."""
    vision = config.data.vision.model_copy(update={"forget": "random", "fraction": None})
    return load_images(config.data.model_copy(update={"vision": vision, "earlier": ()}), config.seed)


class ImageScorer:
    """A saved classifier. The first measurement loads it, and scores the retain and test images of the present run.

    Args:
        path: a directory or a hub name.
        config: the present run.
    """

    def __init__(self, path: str, config: UnlearnConfig) -> None:
        self._path, self._config = path, config
        self._classifier: SavedClassifier | None = None
        self._present: ImageScores | None = None

    def forget_metrics(self, rows: Sequence[ImageRow], scoring: Mapping[str, Any]) -> Values:
        """Return the metrics :data:`METRICS`. The membership classifier learns from the present run's images."""
        classifier, present = self._measured()
        alone = ImageData(class_names=classifier.class_names, forget=tuple(rows), retain=(), test=())
        sets = {**present.sets, "forget": classifier.score(alone, self._config, name=self._path).sets["forget"]}
        values = metrics_of_images(replace(present, sets=sets, seed=int(scoring["seed"]))).values
        return {name: values[name] for name in METRICS}

    def metrics(self) -> Values:
        """Return the metrics on the images of the present run."""
        values = metrics_of_images(self._measured()[1]).values
        return {name: values[name] for name in FIELD_METRICS}

    def _measured(self) -> tuple[SavedClassifier, ImageScores]:
        if self._classifier is None or self._present is None:
            config = self._config
            data = load_images(config.data, config.seed)
            self._classifier = SavedClassifier(self._path, data.class_names, config)
            self._present = self._classifier.score(data, config, name=self._path)
        return self._classifier, self._present
