"""Labelled images in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ImageRow:
    """One labelled image."""

    pixels: Tensor
    """Shape (3, height, width), uint8, from 0 to 255."""
    label: int
    """Index in the data's class names."""


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """One unlearning problem on images."""

    class_names: tuple[str, ...]
    forget: tuple[ImageRow, ...]
    retain: tuple[ImageRow, ...]
    test: tuple[ImageRow, ...]
    """Rows that no model is trained on. If a whole class is forgotten, the rows of that class are left out."""
    left_out: int = 0
    """Number of training rows that earlier runs forgot and that are therefore in no set."""
    content_hash: str = field(init=False)
    """SHA-256 (hex) of class names, pixels and labels of all three sets."""

    def __post_init__(self) -> None:
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for name, rows in self.sets().items():
            digest.update(f"{name} {len(rows)}\n".encode())
            digest.update(rows_hash(rows).encode())
        object.__setattr__(self, "content_hash", digest.hexdigest())

    def sets(self) -> dict[str, tuple[ImageRow, ...]]:
        """Return the scored sets by name."""
        return {"forget": self.forget, "retain": self.retain, "test": self.test}


def rows_hash(rows: Sequence[ImageRow]) -> str:
    """Return the SHA-256 (hex) of shapes, pixels and labels of the rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{tuple(row.pixels.shape)} {row.label}\n".encode())
        digest.update(row.pixels.numpy().tobytes())
    return digest.hexdigest()


def pixels_hash(row: ImageRow) -> str:
    """Return the SHA-256 (hex) of shape and pixels of one image."""
    digest = hashlib.sha256(f"{tuple(row.pixels.shape)}".encode())
    digest.update(row.pixels.numpy().tobytes())
    return digest.hexdigest()
