"""Labelled images as they lie: CIFAR's Parquet files, local or from the hub, and folders of the user's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from ofmu.data.config import DataConfig
from ofmu.errors import DataError, nearest_name
from ofmu.models.hub import hub_reason

HUB_NAMES = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
LABEL_COLUMNS = {"cifar10": "label", "cifar100": "fine_label"}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image before it is decoded."""

    source: bytes | Path
    label: int
    place: str
    """Names the image in errors."""


@dataclass(frozen=True)
class LabelledImages:
    """All images of a source, before rows are chosen to be forgotten."""

    class_names: tuple[str, ...]
    train: Sequence[LabelledImage]
    test: Sequence[LabelledImage]


def read_cifar(config: DataConfig) -> LabelledImages:
    """Read CIFAR's two splits from a directory of Parquet files, or from the hub.

    Raises:
        DataError: a file or column is missing, or the hub gave nothing.
    """
    place = config.path or HUB_NAMES[config.source]
    folder = Path(place).expanduser()
    if folder.is_dir():
        tables = {split: _local_table(folder, split) for split in ("train", "test")}
    elif folder.is_absolute() or place.startswith((".", "~")) or place.count("/") != 1:
        raise DataError(f"There is no directory {place}: set data.path to the folder that holds train*.parquet")
    else:
        tables = {split: _hub_table(place, split) for split in ("train", "test")}
    column = config.vision.label_column or LABEL_COLUMNS[config.source]
    rows = {split: _rows(table, config, column, f"{place} ({split})") for split, table in tables.items()}
    highest = max(row.label for row in (*rows["train"], *rows["test"]))
    return LabelledImages(_class_names(tables["train"], config, column, highest + 1), rows["train"], rows["test"])


def read_folder(config: DataConfig, seed: int) -> LabelledImages:
    """Read a folder with one folder of images per class, or with ``train`` and ``test`` folders of that form.

    Without a ``test`` folder, ``data.vision.test_fraction`` of each class's images are held out, drawn by ``seed``.

    Raises:
        DataError: there is no such folder, or it holds fewer than two classes.
    """
    folder = Path(config.path or "").expanduser()
    if config.path is None or not folder.is_dir():
        raise DataError(f"There is no image folder {config.path}: set data.path to one with a folder per class")
    split = (folder / "train").is_dir()
    root = folder / "train" if split else folder
    classes = sorted(place.name for place in root.iterdir() if place.is_dir() and not place.name.startswith("."))
    if len(classes) < 2:
        raise DataError(
            f"The image folder {root} has fewer than two class folders: give each class a folder of its own"
        )
    train = _folder_rows(root, classes)
    if split:
        if not (folder / "test").is_dir():
            raise DataError(f"The image folder {folder} has a train and no test folder: add one, or name {root} itself")
        return LabelledImages(tuple(classes), train, _folder_rows(folder / "test", classes))
    held_out = _held_out(train, config.vision.test_fraction, seed)
    return LabelledImages(
        tuple(classes),
        [row for index, row in enumerate(train) if index not in held_out],
        [row for index, row in enumerate(train) if index in held_out],
    )


def _held_out(rows: Sequence[LabelledImage], fraction: float, seed: int) -> set[int]:
    generator = np.random.default_rng([seed, len(rows)])
    held: set[int] = set()
    for label in {row.label for row in rows}:
        mine = [index for index, row in enumerate(rows) if row.label == label]
        count = min(len(mine) - 1, max(1, round(fraction * len(mine))))
        held.update(generator.permutation(mine)[:count].tolist())
    return held


def _folder_rows(root: Path, classes: Sequence[str]) -> list[LabelledImage]:
    rows = []
    for label, name in enumerate(classes):
        for file in sorted((root / name).rglob("*")):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                rows.append(LabelledImage(file, label, f"The file {file}"))
    if not rows:
        raise DataError(f"The image folder {root} holds no images: put those of each class into a folder of its own")
    return rows


def _local_table(folder: Path, split: str) -> Any:
    files = sorted(folder.rglob(f"{split}*.parquet"))
    if not files:
        raise DataError(f"The directory {folder} has no {split}*.parquet: name the folder that holds both splits")
    try:
        return pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files])
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"The Parquet files of {folder} cannot be read ({error}): download them again") from error


def _hub_table(name: str, split: str) -> Any:
    # Slow to import, and needless for a local directory.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(name, split=split).with_format("arrow")[:]
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"The hub data set '{name}' cannot be loaded, since {hub_reason(error)}; or set data.path to a local "
            "directory of its Parquet files"
        ) from error


def _rows(table: Any, config: DataConfig, label_column: str, place: str) -> list[LabelledImage]:
    image_column = config.vision.image_column
    for setting, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in table.column_names:
            hint = nearest_name(column, table.column_names)
            raise DataError(f"{place} has no column '{column}', which data.vision.{setting} names: {hint}")
    labels = table.column(label_column).to_pylist()
    images = table.column(image_column).to_pylist()
    rows = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True), start=1):
        if isinstance(label, bool) or not isinstance(label, int) or label < 0:
            raise DataError(
                f"Row {number} of {place} has the label {label!r} in column '{label_column}', which is no class "
                "number: name another data.vision.label_column"
            )
        content = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(content, bytes):
            raise DataError(
                f"Row {number} of {place} holds no image in column '{image_column}': name another "
                "data.vision.image_column"
            )
        rows.append(LabelledImage(content, label, f"Row {number} of {place}"))
    if not rows:
        raise DataError(f"{place} holds no rows: name a source with images")
    return rows


def _class_names(table: Any, config: DataConfig, column: str, classes: int) -> tuple[str, ...]:
    """Return the names that the hub's metadata give the labels, CIFAR-10's own, or the labels as text."""
    metadata = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    named = json.loads(metadata).get("info", {}).get("features", {}).get(column, {}).get("names") or ()
    known = tuple(str(name) for name in named) or (CIFAR10_CLASSES if config.source == "cifar10" else ())
    return known if len(known) >= classes else tuple(str(label) for label in range(classes))
