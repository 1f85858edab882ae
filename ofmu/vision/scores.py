"""Per-row scores of one classifier. The vision metrics are computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ofmu.errors import DataError, ReferenceMismatchError
from ofmu.evaluation.scoring.batches import row_batches
from ofmu.evaluation.scoring.sharding import Shard, run_sharded
from ofmu.io.files import read_json, write_json
from ofmu.vision.loss import ImageLoss
from ofmu.vision.rows import ImageData, ImageRow

FORMAT = "ofmu-image-scores/1"


@dataclass(frozen=True, slots=True)
class SetScores:
    """Scores of one set, per row and in the order of the rows."""

    labels: tuple[int, ...]
    """The class of the row."""
    predicted: tuple[int, ...]
    """The class with the largest logit."""
    confidence: tuple[float, ...]
    """Softmax probability of the row's class. NaN if the logits are not finite."""


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """Per-row scores of one classifier."""

    model: str
    """Name of the classifier in reports."""
    data_hash: str
    """Content hash of the scored data."""
    seed: int
    """Seed of the rows that train the membership classifier."""
    sets: Mapping[str, SetScores]
    """Scores by set: ``forget``, ``retain`` and ``test``."""

    def save(self, path: str | Path) -> None:
        """Write the scores as JSON, atomically. NaN becomes null.

        Raises:
            StorageError: the file cannot be written.
        """
        sets = {
            name: {
                "labels": list(rows.labels),
                "predicted": list(rows.predicted),
                "confidence": [value if math.isfinite(value) else None for value in rows.confidence],
            }
            for name, rows in self.sets.items()
        }
        head = {"format": FORMAT, "model": self.model, "data_hash": self.data_hash, "seed": self.seed}
        write_json(Path(path), head | {"sets": sets})

    @classmethod
    def load(cls, path: str | Path) -> ImageScores:
        """Read the scores that :meth:`save` wrote.

        Raises:
            DataError: the file is missing, is not JSON, or holds no scores of images.
        """
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(f"The file {path} holds no scores of the format '{FORMAT}': make it with ofmu evaluate")
        try:
            return cls(
                model=str(content["model"]),
                data_hash=str(content["data_hash"]),
                seed=int(content["seed"]),
                sets={name: _set_scores(rows) for name, rows in content["sets"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"The scores {path} are malformed ({error!r}): make them again") from error


def _set_scores(content: Mapping[str, Sequence[Any]]) -> SetScores:
    scores = SetScores(
        tuple(int(label) for label in content["labels"]),
        tuple(int(label) for label in content["predicted"]),
        tuple(math.nan if value is None else float(value) for value in content["confidence"]),
    )
    if not len(scores.labels) == len(scores.predicted) == len(scores.confidence):
        raise ValueError("the columns differ in length")
    return scores


def score_images(
    model: nn.Module,
    loss: ImageLoss,
    data: ImageData,
    *,
    batch_size: int,
    seed: int,
    name: str = "model",
    shard: Shard | None = None,
) -> ImageScores:
    """Score a classifier in evaluation mode on every set; collective. Every rank returns all scores.

    Args:
        model: the classifier.
        loss: how pixels become logits.
        data: the images.
        batch_size: images per forward pass.
        seed: seed of the rows that train the membership classifier.
        name: name of the classifier in reports.
        shard: this process's rank. None: one process.
    """
    model.eval()
    device = next(model.parameters()).device
    all_rows: list[ImageRow] = [row for rows in data.sets().values() for row in rows]

    @torch.no_grad()
    def run(indices: list[int]) -> list[tuple[int, float]]:
        rows = [all_rows[index] for index in indices]
        logits = loss.logits(model, rows, device)
        predicted = logits.argmax(1).tolist()
        confidence = logits.double().softmax(1).gather(1, loss.labels(rows, device)[:, None])[:, 0].tolist()
        return list(zip(predicted, confidence, strict=True))

    batches = row_batches([1] * len(all_rows), batch_size)
    results = iter(run_sharded(batches, run, shard or Shard(), name="scoring"))
    sets = {}
    for set_name, rows in data.sets().items():
        scored = [next(results) for _ in rows]
        sets[set_name] = SetScores(
            labels=tuple(row.label for row in rows),
            predicted=tuple(predicted for predicted, _ in scored),
            confidence=tuple(confidence for _, confidence in scored),
        )
    return ImageScores(model=name, data_hash=data.content_hash, seed=seed, sets=sets)


def check_same_images(reference: ImageScores, data_hash: str, model: str) -> None:
    """Check that a reference was scored on the images with the content hash ``data_hash``.

    Args:
        reference: scores of the reference.
        data_hash: content hash of the images that the model is scored on.
        model: name of the model, for the error.

    Raises:
        ReferenceMismatchError: the reference covers other images.
    """
    if reference.data_hash != data_hash:
        raise ReferenceMismatchError(
            f"The reference scores of '{reference.model}' cover other images than those of '{model}': make them again "
            "with this config"
        )
