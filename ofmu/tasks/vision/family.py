"""The task family of images."""

from __future__ import annotations

from pathlib import Path

from ofmu.evaluation.metrics.summary import Metrics
from ofmu.io.files import FileHashes
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.events import PreparationCallback
from ofmu.tasks.family import TaskFamily
from ofmu.tasks.vision.forgotten import ForgottenImages
from ofmu.tasks.vision.preparation import VisionPreparation
from ofmu.tasks.vision.reference import resolve_image_reference, score_saved_images
from ofmu.tasks.vision.task import VisionTask
from ofmu.vision.data import load_images
from ofmu.vision.metrics import metrics_of_images
from ofmu.vision.rows import ImageData
from ofmu.vision.scores import ImageScores, check_same_images


class VisionFamily(TaskFamily):
    """Image classifiers on labelled images."""

    forgotten = ForgottenImages()

    def load_task(self, config: UnlearnConfig, target: Path) -> VisionTask:
        """Load the images."""
        return VisionTask(config, target)

    def preparation(
        self,
        config: UnlearnConfig,
        callback: PreparationCallback | None,
        *,
        only_cached: bool = False,
        hashes: FileHashes | None = None,
    ) -> VisionPreparation:
        """Return a preparation of classifiers."""
        return VisionPreparation(config, callback, only_cached=only_cached, hashes=hashes)

    def load_data(self, config: UnlearnConfig) -> ImageData:
        """Load the images."""
        return load_images(config.data, config.seed)

    def row_counts(self, data: ImageData) -> tuple[int, int]:
        """Return the number of forget images and of retain images."""
        return len(data.forget), len(data.retain)

    def load_scores(self, path: Path, config: UnlearnConfig | None = None) -> ImageScores:
        """Read a file of scores."""
        return ImageScores.load(path)

    def metrics_of(self, scores: ImageScores, reference: ImageScores | None) -> Metrics:
        """Return the metrics of ``scores``."""
        return metrics_of_images(scores, reference)

    def score_saved(self, model: str, data: ImageData, config: UnlearnConfig) -> ImageScores:
        """Load a classifier in fp32 and return the classifier's scores."""
        return score_saved_images(model, data, config, name=model)

    def resolve_reference(self, path: str | Path, config: UnlearnConfig, data: ImageData) -> ImageScores:
        """Return the reference scores at ``path``."""
        return resolve_image_reference(path, config, data)

    def check_reference(self, reference: ImageScores, data: ImageData, config: UnlearnConfig, model: str) -> None:
        """Check that reference scores cover the same images."""
        check_same_images(reference, data.content_hash, model)
