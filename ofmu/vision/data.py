"""Load the images of one unlearning problem."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofmu.data.config import DataConfig
from ofmu.errors import DataError, nearest_name
from ofmu.vision.pixels import decode_image
from ofmu.vision.rows import ImageData, ImageRow
from ofmu.vision.sources import LabelledImage, LabelledImages, read_cifar, read_folder

RANDOM_FRACTION = 0.1
"""Share of all training rows that random forgetting takes if the config sets no share."""


def load_images(config: DataConfig, seed: int) -> ImageData:
    """Load the forget, retain and test images.

    If a whole class is forgotten, its test rows are left out, since no model should know that class any more. Jia et
    al. (arXiv 2304.04934) and their code do the same.

    Args:
        config: the ``data`` section of a config for images.
        seed: draws the rows of a source that holds more rows than are used, the rows of random forgetting, and the test
            rows of a folder without ``test``.

    Raises:
        DataError: a file, column or class is missing, an image cannot be read, or a set is empty.
    """
    source = read_folder(config, seed) if config.source == "images" else read_cifar(config)
    vision = config.vision
    train = _sample(source.train, vision.max_train_rows, seed, "train")
    test = _sample(source.test, vision.max_test_rows, seed, "test")
    forget_indices = _forget_indices(train, source, config, seed)
    forget_labels = {train[index].label for index in forget_indices}
    retain_labels = {row.label for index, row in enumerate(train) if index not in forget_indices}
    if vision.forget == "class":
        test = [row for row in test if row.label in retain_labels or row.label not in forget_labels]
    sets = {
        "forget": [row for index, row in enumerate(train) if index in forget_indices],
        "retain": [row for index, row in enumerate(train) if index not in forget_indices],
        "test": test,
    }
    for name, rows in sets.items():
        if not rows:
            raise DataError(f"The {name} set is empty: lower data.vision.fraction, or name a source with more rows")
    decoded = {name: _decode(rows, vision.image_size) for name, rows in sets.items()}
    return ImageData(class_names=source.class_names, **decoded)


def _decode(rows: Sequence[LabelledImage], size: int) -> tuple[ImageRow, ...]:
    return tuple(ImageRow(decode_image(row.source, size, row.name), row.label) for row in rows)


def _sample(rows: Sequence[LabelledImage], limit: int | None, seed: int, name: str) -> list[LabelledImage]:
    if limit is None or limit >= len(rows):
        return list(rows)
    generator = np.random.default_rng([seed, len(rows), len(name)])
    return [rows[index] for index in sorted(generator.permutation(len(rows))[:limit].tolist())]


def _forget_indices(rows: Sequence[LabelledImage], source: LabelledImages, config: DataConfig, seed: int) -> set[int]:
    """Return the indices of the rows to forget."""
    vision = config.vision
    if vision.forget == "class":
        label = class_index(vision.forget_class, source.class_names)
        candidates = [index for index, row in enumerate(rows) if row.label == label]
        share = 1.0 if vision.fraction is None else vision.fraction
        if not candidates:
            raise DataError(
                f"No training row has the class '{source.class_names[label]}' of data.vision.forget_class: name "
                "another class, or raise data.vision.max_train_rows"
            )
    else:
        candidates = list(range(len(rows)))
        share = RANDOM_FRACTION if vision.fraction is None else vision.fraction
    count = max(1, round(share * len(candidates)))
    generator = np.random.default_rng([seed, len(candidates), 1])
    return set(generator.permutation(candidates)[:count].tolist())


def class_index(name_or_index: str | int, class_names: Sequence[str]) -> int:
    """Return the index of a class that is given by name or by index.

    Raises:
        DataError: there is no such class. The message names the nearest class.
    """
    if str(name_or_index) in class_names:
        return class_names.index(str(name_or_index))
    if str(name_or_index).isdigit() and int(name_or_index) < len(class_names):
        return int(name_or_index)
    hint = nearest_name(str(name_or_index), class_names)
    raise DataError(f"Unknown class '{name_or_index}' in data.vision.forget_class: {hint}")
