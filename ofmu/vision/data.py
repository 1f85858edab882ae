"""Load the images of one unlearning problem."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ofmu.data.config import DataConfig
from ofmu.errors import DataError, nearest_name
from ofmu.vision.earlier import earlier_images, hashes_of
from ofmu.vision.pixels import decode_image
from ofmu.vision.rows import ImageData, ImageRow, pixels_hash
from ofmu.vision.sources import LabelledImage, read_cifar, read_folder

RANDOM_FRACTION = 0.1
"""Share of all training rows that random forgetting takes if the config sets no share."""


def load_images(config: DataConfig, seed: int) -> ImageData:
    """Load the forget, retain and test images.

    If a whole class is forgotten, its test rows are left out, since no model should know that class any more. Jia et
    al. (arXiv 2304.04934) and their code do the same. Images of ``data.earlier`` are in no set, unless their whole
    class is forgotten again.

    Args:
        config: the ``data`` section of a config for images.
        seed: draws the rows of a source that holds more rows than are used, the rows of random forgetting, and the test
            rows of a folder without ``test``.

    Raises:
        DataError: a file, column or class is missing, an image cannot be read, or a set is empty.
    """
    source = read_folder(config, seed) if config.source == "images" else read_cifar(config)
    vision = config.vision
    # Reading pixels takes long, so an unknown class is said before.
    label = class_index(vision.forget_class, source.class_names) if vision.forget == "class" else None
    train, test = (
        _decode(_sample(rows, limit, seed, name), vision.image_size)
        for rows, limit, name in (
            (source.train, vision.max_train_rows, "train"),
            (source.test, vision.max_test_rows, "test"),
        )
    )
    earlier = earlier_images(config.earlier, vision.image_size, len(source.class_names))
    forgotten = hashes_of(earlier)
    is_earlier = [bool(forgotten) and pixels_hash(row) in forgotten for row in train]
    chosen = _forget_indices(train, is_earlier, label, config, seed)
    forget = [row for index, row in enumerate(train) if index in chosen]
    retain = [row for index, row in enumerate(train) if index not in chosen and not is_earlier[index]]
    # A class of which every row is forgotten is one that no model should know.
    gone = {row.label for row in earlier} | ({row.label for row in forget} if vision.forget == "class" else set())
    gone -= {row.label for row in retain}
    sets = {"forget": forget, "retain": retain, "test": [row for row in test if row.label not in gone]}
    for name, rows in sets.items():
        if not rows:
            fix = "lower data.vision.fraction, or name a source with more rows"
            if forgotten:
                fix = f"earlier runs forgot {sum(is_earlier)} of {len(train)} training rows, so {fix}"
            raise DataError(f"The {name} set is empty: {fix}")
    left_out = len(train) - len(forget) - len(retain)
    return ImageData(
        class_names=source.class_names, **{name: tuple(rows) for name, rows in sets.items()}, left_out=left_out
    )


def _decode(rows: Sequence[LabelledImage], size: int) -> tuple[ImageRow, ...]:
    return tuple(ImageRow(decode_image(row.source, size, row.name), row.label) for row in rows)


def _sample(rows: Sequence[LabelledImage], limit: int | None, seed: int, name: str) -> list[LabelledImage]:
    if limit is None or limit >= len(rows):
        return list(rows)
    generator = np.random.default_rng([seed, len(rows), len(name)])
    return [rows[index] for index in sorted(generator.permutation(len(rows))[:limit].tolist())]


def _forget_indices(
    rows: Sequence[ImageRow], is_earlier: Sequence[bool], label: int | None, config: DataConfig, seed: int
) -> set[int]:
    """Return the indices of the rows to forget, which are rows of the class ``label``, or of all classes if it is None.

    A share is drawn among the rows that no earlier run forgot. A whole class holds its earlier rows too, since a class
    may have to be forgotten again.
    """
    vision = config.vision
    if label is not None:
        candidates = [index for index, row in enumerate(rows) if row.label == label]
        share = 1.0 if vision.fraction is None else vision.fraction
        if not candidates:
            raise DataError(
                f"No training row has the class '{vision.forget_class}' of data.vision.forget_class: name another "
                "class, or raise data.vision.max_train_rows"
            )
    else:
        candidates = list(range(len(rows)))
        share = RANDOM_FRACTION if vision.fraction is None else vision.fraction
    if share < 1:
        candidates = [index for index in candidates if not is_earlier[index]]
        if not candidates:
            raise DataError(
                "Earlier runs forgot every row among which data.vision.fraction draws: name another class as "
                "data.vision.forget_class, or leave data.vision.fraction out"
            )
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
