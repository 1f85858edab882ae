"""Decode image files to pixels, and normalise pixels to the inputs of a classifier."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ofmu.errors import DataError, ModelError
from ofmu.io.files import write_json
from ofmu.vision.rows import ImageRow

PREPROCESSOR_FILE = "preprocessor_config.json"
MAX_PIXEL = 255.0


def decode_image(source: bytes | Path, size: int, name: str) -> Tensor:
    """Return an image as RGB pixels: shape (3, size, size), uint8. An image of another size is resized bilinearly.

    Args:
        source: the bytes of the image file, or its path.
        size: height and width in pixels.
        name: name of the image in errors.

    Raises:
        DataError: the image cannot be read.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            rgb = image.convert("RGB")
            if rgb.size != (size, size):
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{name} cannot be read as an image ({reason}): fix or remove it") from error


@dataclass(frozen=True)
class Normalisation:
    """The inputs of a classifier, per channel: (pixels / 255 − mean) / std."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    size: int = 32
    """Height and width of the training images in pixels. Only other programs read this number."""

    def inputs(self, pixels: Tensor) -> Tensor:
        """Return the normalised inputs. ``pixels``: shape (rows, 3, height, width), from 0 to 1."""
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std

    def save_pretrained(self, directory: Path) -> None:
        """Write the file that ``AutoImageProcessor`` of Transformers reads beside a model."""
        settings = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.size, "width": self.size},
            "resample": int(Image.Resampling.BILINEAR),
            "do_rescale": True,
            "rescale_factor": 1 / MAX_PIXEL,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        write_json(Path(directory) / PREPROCESSOR_FILE, settings)

    @classmethod
    def of_model(cls, directory: Path, size: int) -> Normalisation:
        """Return the normalisation that is stored beside a model. Without a stored one, return the default.

        Raises:
            ModelError: the stored file cannot be read, or does not hold three channels.
        """
        file = directory / PREPROCESSOR_FILE
        if not file.is_file():
            return cls(size=size)
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            mean = tuple(float(value) for value in settings["image_mean"])
            std = tuple(float(value) for value in settings["image_std"])
            if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
                raise ValueError("three means and three positive deviations are needed")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"The file {file} cannot be used ({error!r}): fix its image_mean and image_std") from error
        return cls(mean, std, size)


def pixels_in_unit_range(rows: Sequence[ImageRow], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the pixels of rows, from 0 to 1: shape (rows, 3, height, width)."""
    return torch.stack([row.pixels for row in rows]).to(device).to(dtype) / MAX_PIXEL
