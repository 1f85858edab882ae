"""What a directory must hold to be loaded as a model; nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

from ofmu.errors import ModelError


def check_model_directory(path: str | Path) -> None:
    """See that a model can be loaded from ``path`` without running code; what may be a hub name is let through.

    Raises:
        ModelError: it is a path with nothing there, or a directory without a config or safetensors.
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.exists():
            raise ModelError(f"The model {path} is a file: name the directory that holds it")
        if isinstance(path, Path) or folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
            raise ModelError(f"There is no model directory {path}: check the path, or give a hub name")
        return
    if not (folder / "config.json").is_file():
        raise ModelError(f"The directory {path} is no model, since it has no config.json: name a saved model")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"The model directory {path} has no *.safetensors weights: save the model with safetensors, "
            "the only format that is loaded since it cannot run code"
        )
