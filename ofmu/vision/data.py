"""From a data config to the images of one unlearning problem."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofmu.data.config import DataConfig
from ofmu.errors import DataError, nearest_name
from ofmu.vision.pixels import decode_image
from ofmu.vision.rows import ImageData, ImageRow
from ofmu.vision.sources import LabelledImage, LabelledImages, read_cifar, read_folder

RANDOM_FRACTION = 0.1
"""Share of all training rows that random forgetting takes where the config names none."""


def load_images(config: DataConfig, seed: int) -> ImageData:
    """Load the forget, retain and test images.

    ``seed`` draws what is kept of a large source, what is forgotten at random, and the test rows of a folder that
    has none. Where all of a class is forgotten, its test rows are left out too, as the field does (Jia et al.,
    arXiv 2304.04934, and their code): no model is to know that class any more.

    Raises:
        DataError: a file, column or class is missing, an image cannot be read, or a set is empty.
    """
    found = read_folder(config, seed) if config.source == "images" else read_cifar(config)
    vision = config.vision
    train = _sample(found.train, vision.max_train_rows, seed, "train")
    test = _sample(found.test, vision.max_test_rows, seed, "test")
    forgotten = _forgotten(train, found, config, seed)
    gone = {train[index].label for index in forgotten}
    kept = {row.label for index, row in enumerate(train) if index not in forgotten}
    if vision.forget == "class":
        test = [row for row in test if row.label in kept or row.label not in gone]
    sets = {
        "forget": [row for index, row in enumerate(train) if index in forgotten],
        "retain": [row for index, row in enumerate(train) if index not in forgotten],
        "test": test,
    }
    for name, rows in sets.items():
        if not rows:
            raise DataError(f"The {name} set is empty: lower data.vision.fraction, or name a source with more rows")
    decoded = {name: _decode(rows, vision.image_size) for name, rows in sets.items()}
    return ImageData(class_names=found.class_names, **decoded)


def _decode(rows: Sequence[LabelledImage], size: int) -> tuple[ImageRow, ...]:
    return tuple(ImageRow(decode_image(row.source, size, row.place), row.label) for row in rows)


def _sample(rows: Sequence[LabelledImage], most: int | None, seed: int, name: str) -> list[LabelledImage]:
    if most is None or most >= len(rows):
        return list(rows)
    generator = np.random.default_rng([seed, len(rows), len(name)])
    return [rows[index] for index in sorted(generator.permutation(len(rows))[:most].tolist())]


def _forgotten(rows: Sequence[LabelledImage], found: LabelledImages, config: DataConfig, seed: int) -> set[int]:
    """Return the indices of the rows to forget."""
    vision = config.vision
    if vision.forget == "class":
        wanted = class_index(vision.forget_class, found.class_names)
        candidates = [index for index, row in enumerate(rows) if row.label == wanted]
        share = 1.0 if vision.fraction is None else vision.fraction
        if not candidates:
            raise DataError(
                f"No training row is of the class '{found.class_names[wanted]}' that data.vision.forget_class names: "
                "name another, or keep more rows"
            )
    else:
        candidates = list(range(len(rows)))
        share = RANDOM_FRACTION if vision.fraction is None else vision.fraction
    count = max(1, round(share * len(candidates)))
    generator = np.random.default_rng([seed, len(candidates), 1])
    return set(generator.permutation(candidates)[:count].tolist())


def class_index(wanted: str | int, class_names: Sequence[str]) -> int:
    """Return the index of a class given by name or by index.

    Raises:
        DataError: there is no such class; the sentence offers the nearest.
    """
    if str(wanted) in class_names:
        return class_names.index(str(wanted))
    if str(wanted).isdigit() and int(wanted) < len(class_names):
        return int(wanted)
    raise DataError(f"Unknown class '{wanted}' in data.vision.forget_class: {nearest_name(str(wanted), class_names)}")
