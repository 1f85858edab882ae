"""A cheap look at a classifier in the middle of its run: a few images of every set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from ofmu.engine import Engine
from ofmu.evaluation.metrics.summary import Metrics
from ofmu.evaluation.scoring.sharding import Shard
from ofmu.vision.loss import ImageLoss
from ofmu.vision.metrics import metrics_of_images
from ofmu.vision.rows import ImageData, ImageRow
from ofmu.vision.scores import ImageScores, SetScores, require_same_images, score_images


class ImageSketch:
    """The evaluation on at most ``rows`` images per set, the same for every run on the same data.

    Metrics keep their names and definitions; gaps compare with the reference's scores of the same images.
    """

    def __init__(self, data: ImageData, loss: ImageLoss, *, rows: int, batch_size: int, seed: int) -> None:
        self._loss, self._batch_size, self._seed, self._whole = loss, batch_size, seed, data.content_hash
        self._places = {name: chosen_images(found, rows) for name, found in data.sets().items()}
        kept = {name: tuple(found[place] for place in self._places[name]) for name, found in data.sets().items()}
        self._data = ImageData(class_names=data.class_names, **kept)
        self._reference = cache(self._read_reference)

    def metrics(self, engine: Engine, reference: Path | None) -> Metrics:
        """Score the engine's model, which keeps its mode, and return its metrics; collective.

        Raises:
            ReferenceMismatchError: the reference covers other images.
        """
        training = engine.model.training
        shard = Shard(rank=engine.rank, world_size=engine.world_size, synchronized=engine.zero_stage == 3)
        scores = score_images(
            engine.model, self._loss, self._data, batch_size=self._batch_size, seed=self._seed, shard=shard
        )
        engine.model.train(training)
        return metrics_of_images(scores, None if reference is None else self._reference(reference))

    def _read_reference(self, path: Path) -> ImageScores:
        whole = ImageScores.load(path)
        require_same_images(whole, self._whole, "the run")
        return reduced_scores(whole, self._places, self._data.content_hash)


def chosen_images(rows: Sequence[ImageRow], count: int) -> tuple[int, ...]:
    """Return the indices, ascending, of the ``count`` images whose hashes are lowest: as good as drawn."""
    keys = [hashlib.sha256(row.pixels.numpy().tobytes()).digest() for row in rows]
    return tuple(sorted(sorted(range(len(rows)), key=keys.__getitem__)[:count]))


def reduced_scores(scores: ImageScores, places: Mapping[str, Sequence[int]], data_hash: str) -> ImageScores:
    """Return the scores at ``places`` of each set alone, as scores of the data with ``data_hash``."""
    sets = {name: _at(scores.sets[name], found) for name, found in places.items()}
    return replace(scores, sets=sets, data_hash=data_hash)


def _at(rows: SetScores, places: Sequence[int]) -> SetScores:
    return SetScores(
        tuple(rows.labels[place] for place in places),
        tuple(rows.predicted[place] for place in places),
        tuple(rows.confidence[place] for place in places),
    )
