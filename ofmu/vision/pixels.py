"""From image files to pixels, and from pixels to what a classifier reads."""

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
LARGEST = 255.0


def decode_image(source: bytes | Path, size: int, place: str) -> Tensor:
    """Return an image as uint8 of shape (3, size, size): RGB, stretched by bilinear interpolation where need be.

    Raises:
        DataError: the image cannot be read; ``place`` says which.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            colours = image.convert("RGB")
            if colours.size != (size, size):
                colours = colours.resize((size, size), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(colours)).permute(2, 0, 1).contiguous()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{place} is no image that can be read ({reason}): mend or remove it") from error


@dataclass(frozen=True)
class Normalisation:
    """What a classifier makes of pixels before its first layer: (pixels / 255 − mean) / std, per channel."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    size: int = 32
    """Height and width that the classifier was trained on, in pixels; stored for other readers."""

    def inputs(self, shares: Tensor) -> Tensor:
        """Return normalised channels of ``shares``, pixels of shape (rows, 3, height, width) between 0 and 1."""
        mean, std = (shares.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (shares - mean) / std

    def save_pretrained(self, directory: Path) -> None:
        """Write what transformers' ``AutoImageProcessor`` reads beside a model."""
        settings = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.size, "width": self.size},
            "resample": int(Image.Resampling.BILINEAR),
            "do_rescale": True,
            "rescale_factor": 1 / LARGEST,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        write_json(Path(directory) / PREPROCESSOR_FILE, settings)

    @classmethod
    def of_model(cls, directory: Path, size: int) -> Normalisation:
        """Return the normalisation stored beside a model, or the default where there is none.

        Raises:
            ModelError: the stored one cannot be read, or is not for three channels.
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
            raise ModelError(
                f"The file {file} cannot be used ({error!r}): mend its image_mean and image_std"
            ) from error
        return cls(mean, std, size)


def pixels_in_unit_range(rows: Sequence[ImageRow], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the rows' pixels between 0 and 1: shape (rows, 3, height, width)."""
    return torch.stack([row.pixels for row in rows]).to(device).to(dtype) / LARGEST
