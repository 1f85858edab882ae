"""The files that a model directory must hold. This check needs neither torch nor the hub."""

from __future__ import annotations

from pathlib import Path

from ofmu.errors import ModelError


def check_model_directory(path: str | Path) -> None:
    """Check that a local model can be loaded without running code. A text that may be a hub name passes.

    Raises:
        ModelError: ``path`` is a file, is a path at which nothing exists, or is a directory without a config or
            safetensors weights.
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.exists():
            raise ModelError(f"The model {path} is a file: name the directory that holds it")
        if isinstance(path, Path) or folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
            raise ModelError(f"There is no model directory {path}: check the path, or give a hub name")
        return
    if not (folder / "config.json").is_file():
        raise ModelError(f"The directory {path} has no config.json, so it is not a model: name a saved model")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"The model directory {path} has no *.safetensors weights: save the model with safetensors, the only "
            "accepted format, since other formats can run code"
        )
