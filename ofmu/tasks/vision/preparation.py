"""Preparation of image classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch.nn import functional

from ofmu.engine.build import resolve_device
from ofmu.finetuning.loop import train
from ofmu.io.cache import model_hashes
from ofmu.io.files import FileHashes
from ofmu.models.language import write_model
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.events import PreparationCallback
from ofmu.tasks.preparation import Preparation
from ofmu.tasks.vision.reference import resolve_image_reference, score_saved_images
from ofmu.vision.data import load_images
from ofmu.vision.loss import ImageLoss
from ofmu.vision.model import build_classifier, load_classifier
from ofmu.vision.pixels import Normalisation
from ofmu.vision.rows import rows_hash
from ofmu.vision.scores import ImageScores, check_same_images


class VisionPreparation(Preparation):
    """Trains image classifiers with batch statistics, in one process."""

    def __init__(
        self,
        config: UnlearnConfig,
        callback: PreparationCallback | None,
        *,
        only_cached: bool = False,
        hashes: FileHashes | None = None,
    ) -> None:
        super().__init__(config, callback, only_cached=only_cached, hashes=hashes)
        self._data = load_images(config.data, config.seed)

    def _base(self) -> Path:
        named = self._named_base()
        if named is not None:
            return named
        shape, names, seed = self._config.model.resnet, self._data.class_names, self._config.seed
        size = self._config.data.vision.image_size

        def build(directory: Path) -> dict[str, float]:
            untrained = build_classifier(shape, names, seed=seed)
            write_model(untrained, Normalisation(size=size), directory)
            return {"parameters": sum(weight.numel() for weight in untrained.parameters())}

        parts = {"resnet": shape.model_dump(mode="json"), "classes": list(names), "size": size, "seed": seed}
        return self._get("base", "models", parts, build)

    def _train(self, part: Literal["target", "retrain"], base: Path) -> Path:
        config, data = self._config, self._data
        rows = [*data.forget, *data.retain] if part == "target" else [*data.retain]

        def build(directory: Path) -> dict[str, float]:
            device = resolve_device(config.engine)
            model: Any = load_classifier(base, data.class_names, new_head_seed=config.seed).to(device)
            normalisation = Normalisation.of_model(base, config.data.vision.image_size)
            loss = ImageLoss(normalisation, len(data.class_names))
            cost = train(
                model,
                rows,
                config.training,
                batch_loss=lambda batch: functional.cross_entropy(
                    loss.logits(model, batch, device), loss.labels(batch, device)
                ),
                tokens=loss.tokens,
                seed=config.seed,
                callback=self._epoch_callback(part),
            )
            write_model(model, normalisation, directory)
            return cost

        parts = {
            "base": model_hashes(base, self._hashes),
            "classes": list(data.class_names),
            "images": rows_hash(rows),
            "training": config.training.model_dump(mode="json"),
            "seed": config.seed,
        }
        return self._get(part, "models", parts, build)

    def _scores_of(self, model_directory: Path, name: str) -> ImageScores:
        return score_saved_images(model_directory, self._data, self._config, name=name)

    def _scores_at(self, path: str) -> ImageScores:
        return resolve_image_reference(path, self._config, self._data)

    def _check_match(self, reference_scores: Path) -> None:
        name = str(self._config.model.path or "target")
        check_same_images(ImageScores.load(reference_scores), self._data.content_hash, name)

    def _scoring(self) -> dict[str, Any]:
        size = self._config.data.vision.image_size
        return {"images": self._data.content_hash, "size": size, "seed": self._config.seed}
