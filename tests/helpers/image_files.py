"""Small image files: Parquet in the schema of the hub, and one folder per class."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("cat", "dog", "ship")


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pixels(label: int, generator: np.random.Generator, size: int = 8) -> np.ndarray:
    """Return noise. The channel of the class is brighter than the other channels."""
    noise = generator.integers(0, 160, (size, size, 3))
    noise[:, :, label % 3] += 90
    return noise.astype(np.uint8)


def write_parquet(
    folder: Path,
    *,
    train: int = 12,
    test: int = 6,
    names: Sequence[str] | None = CLASSES,
    label_column: str = "label",
    replaced: Mapping[int, bytes] | None = None,
) -> Path:
    """Write both splits with alternating classes. ``replaced``: other bytes for training rows, by index."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        images = [{"bytes": png(pixels(row % 3, generator)), "path": f"{row}.png"} for row in range(count)]
        for row, content in (replaced or {}).items() if split == "train" else ():
            images[row]["bytes"] = content
        table = pa.table({"img": images, label_column: [row % 3 for row in range(count)]})
        if names is not None:
            features = {"img": {"_type": "Image"}, label_column: {"names": list(names), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def write_folder(root: Path, counts: Mapping[str, int], size: int = 8) -> None:
    generator = np.random.default_rng(1)
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(pixels(label, generator, size)).save(root / name / f"{index}.png")
