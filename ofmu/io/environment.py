"""The versions and the machine that a run used. Numbers may depend on them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

_PACKAGES = (
    "ofmu", "torch", "transformers", "tokenizers", "deepspeed", "datasets", "ray", "optuna", "numpy", "scipy",
    "rouge-score",
)  # fmt: skip
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def environment() -> dict[str, Any]:
    """Return versions and machine as JSON values. Packages that are not installed are left out.

    On a machine with GPUs, the values include the driver, the version of CUDA, and whether products of matrices run in
    TF32 at this moment.
    """
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else []
    on_gpus = {"driver": driver_version(), "cuda": torch.version.cuda, "tf32": _tf32(torch)} if torch and gpus else {}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "processors": os.cpu_count(),
        "gpus": gpus,
        **on_gpus,
        "versions": versions,
    }


def driver_version(file: Path = _DRIVER_FILE) -> str | None:
    """Return the version of NVIDIA's driver. None: the machine has no such driver, or hides it."""
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", file.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1] if found else None


def _tf32(torch: Any) -> dict[str, bool]:
    return {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
