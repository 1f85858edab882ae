"""Images that earlier runs forgot, as files. A later run neither retains nor tests on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ofmu.errors import DataError
from ofmu.io.files import check_regular, looked_for, write_bytes
from ofmu.vision.rows import ImageRow, pixels_hash


def write_images(path: Path, rows: Sequence[ImageRow]) -> None:
    """Write images of one size as a safetensors file: pixels of shape (rows, 3, height, width), and labels.

    Raises:
        StorageError: the file cannot be written.
    """
    pixels = torch.stack([row.pixels for row in rows]) if rows else torch.zeros(0, 3, 0, 0, dtype=torch.uint8)
    labels = torch.tensor([row.label for row in rows], dtype=torch.int64)
    write_bytes(path, save({"pixels": pixels.contiguous(), "labels": labels}))


def read_images(path: Path) -> tuple[ImageRow, ...]:
    """Return the images that :func:`write_images` wrote.

    Raises:
        DataError: the file is missing, or holds no such images.
    """
    if not path.exists():
        raise DataError(f"There is no file of earlier images {looked_for(path)}: check data.earlier")
    try:
        check_regular(path)
        stored = load(path.read_bytes())
        pixels, labels = stored["pixels"], stored["labels"]
    except OSError as error:
        raise DataError(f"The file of earlier images {path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, KeyError) as error:
        raise DataError(_malformed(path)) from error
    fits = pixels.dtype == torch.uint8 and labels.dtype == torch.int64 and pixels.dim() == 4
    if not fits or labels.shape != pixels.shape[:1]:
        raise DataError(_malformed(path))
    return tuple(ImageRow(image, label) for image, label in zip(pixels, labels.tolist(), strict=True))


def earlier_images(files: Iterable[str], image_size: int, classes: int) -> tuple[ImageRow, ...]:
    """Return the images of ``data.earlier``.

    Raises:
        DataError: a file cannot be read, or its images have another size or a class that the data lacks.
    """
    found: list[ImageRow] = []
    for file in files:
        rows = read_images(Path(file))
        size = next((tuple(row.pixels.shape[1:]) for row in rows if row.pixels.shape[1:] != (image_size,) * 2), None)
        if size is not None:
            raise DataError(
                f"{file} holds images of {size[0]} by {size[1]} pixels, and an image of another size cannot be found "
                f"among the rows again: set data.vision.image_size to {size[0]}, as in the earlier run"
            )
        if any(not 0 <= row.label < classes for row in rows):
            raise DataError(
                f"{file} holds images of a class that the data lacks: name the same classes as in the earlier run"
            )
        found += rows
    return tuple(found)


def hashes_of(rows: Iterable[ImageRow]) -> frozenset[str]:
    """Return the hashes by which images are found again. The label is no part of them."""
    return frozenset(pixels_hash(row) for row in rows)


def _malformed(path: Path) -> str:
    return f"The file {path} holds no images that an earlier run forgot: restore it from a copy"
