"""Read labelled images: the Parquet files of CIFAR, local or from the hub, and the user's own folders."""

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
from ofmu.data.hub import load_hub_split, local_copy
from ofmu.errors import DataError, nearest_name
from ofmu.io.files import expanded, looked_for
from ofmu.models.hub import looks_like_hub_id

HUB_NAMES = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
LABEL_COLUMNS = {"cifar10": "label", "cifar100": "fine_label"}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image before decoding."""

    source: bytes | Path
    label: int
    name: str
    """Name of the image in errors."""


@dataclass(frozen=True)
class LabelledImages:
    """All images of a source."""

    class_names: tuple[str, ...]
    train: Sequence[LabelledImage]
    test: Sequence[LabelledImage]


def read_cifar(config: DataConfig) -> LabelledImages:
    """Read both splits of CIFAR from a directory of Parquet files, or from the hub.

    Raises:
        DataError: a file or a column is missing, or the hub has no such data set.
    """
    source = config.path or HUB_NAMES[config.source]
    folder = expanded(source)
    if folder.is_dir():
        tables = {split: _local_table(folder, split) for split in ("train", "test")}
    elif not looks_like_hub_id(source):
        raise DataError(
            f"There is no directory {looked_for(source)}: set data.path to the folder that holds train*.parquet"
        )
    else:
        tables = {split: _hub_table(source, split) for split in ("train", "test")}
    column = config.vision.label_column or LABEL_COLUMNS[config.source]
    rows = {split: _rows(table, config, column, f"{source} ({split})") for split, table in tables.items()}
    max_label = max(row.label for row in (*rows["train"], *rows["test"]))
    return LabelledImages(_class_names(tables["train"], config, column, max_label + 1), rows["train"], rows["test"])


def read_folder(config: DataConfig, seed: int) -> LabelledImages:
    """Read a folder with one folder of images per class, or with two such folders, ``train`` and ``test``.

    Without a ``test`` folder, ``data.vision.test_fraction`` of each class is held out, drawn by ``seed``.

    Raises:
        DataError: there is no such folder, or the folder holds fewer than two classes.
    """
    folder = expanded(config.path or "")
    if config.path is None or not folder.is_dir():
        missing = "" if config.path is None else f" {looked_for(config.path)}"
        raise DataError(f"There is no image folder{missing}: set data.path to one with a folder per class")
    has_splits = (folder / "train").is_dir()
    root = folder / "train" if has_splits else folder
    classes = _class_folders(root)
    if len(classes) < 2:
        raise DataError(f"The image folder {root} has fewer than two class folders: make one folder per class")
    train = _folder_rows(root, classes)
    empty = sorted(set(range(len(classes))) - {row.label for row in train})
    if empty:
        raise DataError(f"The class folder {root / classes[empty[0]]} holds no images: add some, or remove the folder")
    if has_splits:
        if not (folder / "test").is_dir():
            raise DataError(
                f"The image folder {folder} has a train folder and no test folder: add one, or set data.path to {root}"
            )
        only_tested = sorted(set(_class_folders(folder / "test")) - set(classes))
        if only_tested:
            raise DataError(
                f"The image folder {folder / 'test'} has the class '{only_tested[0]}', and {root} has not: add the "
                "class there, or remove its folder"
            )
        return LabelledImages(tuple(classes), train, _folder_rows(folder / "test", classes))
    test_indices = _test_indices(train, config.vision.test_fraction, seed)
    return LabelledImages(
        tuple(classes),
        [row for index, row in enumerate(train) if index not in test_indices],
        [row for index, row in enumerate(train) if index in test_indices],
    )


def _test_indices(rows: Sequence[LabelledImage], fraction: float, seed: int) -> set[int]:
    """Return the indices of the rows to hold out. Each class keeps at least one training row."""
    generator = np.random.default_rng([seed, len(rows)])
    indices: set[int] = set()
    for label in {row.label for row in rows}:
        of_class = [index for index, row in enumerate(rows) if row.label == label]
        count = min(len(of_class) - 1, max(1, round(fraction * len(of_class))))
        indices.update(generator.permutation(of_class)[:count].tolist())
    return indices


def _class_folders(root: Path) -> list[str]:
    """Return the names of the classes: the folders that are neither hidden nor made by macOS's archives."""
    folders = (path.name for path in root.iterdir() if path.is_dir())
    return sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")


def _folder_rows(root: Path, classes: Sequence[str]) -> list[LabelledImage]:
    rows = []
    for label, name in enumerate(classes):
        for file in sorted((root / name).rglob("*")):
            # Notebooks keep copies in .ipynb_checkpoints, and macOS keeps icons in files such as ._cat.png.
            hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
            if file.suffix.lower() in IMAGE_SUFFIXES and not hidden and file.is_file():
                rows.append(LabelledImage(file, label, f"The file {file}"))
    if not rows:
        raise DataError(f"The image folder {root} holds no images: put the images of each class into its folder")
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
    return load_hub_split(name, split, instead=local_copy("Parquet")).with_format("arrow")[:]


def _rows(table: Any, config: DataConfig, label_column: str, source: str) -> list[LabelledImage]:
    image_column = config.vision.image_column
    for setting, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in table.column_names:
            hint = nearest_name(column, table.column_names)
            raise DataError(f"{source} has no column '{column}', which data.vision.{setting} names: {hint}")
    labels = table.column(label_column).to_pylist()
    images = table.column(image_column).to_pylist()
    rows = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True), start=1):
        name = f"Row {number} of {source}"
        if isinstance(label, bool) or not isinstance(label, int) or label < 0:
            raise DataError(
                f"{name} has the label {label!r} in column '{label_column}', which is no class number: set "
                "data.vision.label_column to another column"
            )
        content = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(content, bytes):
            raise DataError(
                f"{name} holds no image in column '{image_column}': set data.vision.image_column to another column"
            )
        rows.append(LabelledImage(content, label, name))
    if not rows:
        raise DataError(f"{source} holds no rows: name a source with images")
    return rows


def _class_names(table: Any, config: DataConfig, column: str, classes: int) -> tuple[str, ...]:
    """Return the labels' names from the hub's metadata, else the names of CIFAR-10, else the labels as text."""
    metadata = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    stored = json.loads(metadata).get("info", {}).get("features", {}).get(column, {}).get("names") or ()
    names = tuple(str(name) for name in stored) or (CIFAR10_CLASSES if config.source == "cifar10" else ())
    return names if len(names) >= classes else tuple(str(label) for label in range(classes))
