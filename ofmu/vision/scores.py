"""What one classifier makes of every image: what vision metrics are computed from, and how it is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ofmu.errors import DataError, ReferenceMismatchError
from ofmu.evaluation.scoring.sharding import Shard, global_batches, run_sharded
from ofmu.io.files import read_json, write_json
from ofmu.vision.loss import ImageLoss
from ofmu.vision.rows import ImageData, ImageRow

FORMAT = "ofmu-image-scores/1"


@dataclass(frozen=True, slots=True)
class SetScores:
    """One number per row of a set, in the rows' order."""

    labels: tuple[int, ...]
    predicted: tuple[int, ...]
    """The class with the largest logit."""
    confidence: tuple[float, ...]
    """Softmax probability of the true class; NaN where the logits are not finite."""


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """Scores of one classifier by set: forget, retain, test."""

    model: str
    data_hash: str
    seed: int
    """Draws the rows that the membership attack learns from."""
    sets: Mapping[str, SetScores]

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all; a NaN is stored as null.

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
        """Read what :meth:`save` wrote.

        Raises:
            DataError: the file is missing, is no JSON, or holds no scores of images.
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
        raise ValueError("its columns differ in length")
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
    """Score a classifier in evaluation mode on every set; every rank returns all scores."""
    model.eval()
    device = next(model.parameters()).device
    everything: list[ImageRow] = [row for rows in data.sets().values() for row in rows]

    @torch.no_grad()
    def run(indices: list[int]) -> list[tuple[int, float]]:
        rows = [everything[index] for index in indices]
        logits = loss.logits(model, rows, device)
        predicted = logits.argmax(1).tolist()
        confidence = logits.double().softmax(1).gather(1, loss.labels(rows, device)[:, None])[:, 0].tolist()
        return list(zip(predicted, confidence, strict=True))

    batches = global_batches([1] * len(everything), batch_size)
    results = iter(run_sharded(batches, run, shard or Shard()))
    sets = {}
    for part, rows in data.sets().items():
        found = [next(results) for _ in rows]
        labels = tuple(row.label for row in rows)
        sets[part] = SetScores(labels, tuple(guess for guess, _ in found), tuple(value for _, value in found))
    return ImageScores(model=name, data_hash=data.content_hash, seed=seed, sets=sets)


def require_same_images(reference: ImageScores, data_hash: str, model: str) -> None:
    """Raise ReferenceMismatchError if a reference was scored on other images than ``data_hash`` stands for."""
    if reference.data_hash != data_hash:
        raise ReferenceMismatchError(
            f"The reference scores of '{reference.model}' cover other images than those of '{model}': make them again "
            "with this config"
        )
