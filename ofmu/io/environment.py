"""The versions and the machine that a run used. Numbers may depend on them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

_PACKAGES = (
    "ofmu", "torch", "transformers", "tokenizers", "deepspeed", "datasets", "ray", "optuna", "numpy", "scipy",
    "rouge-score",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Return versions and machine as JSON values. Packages that are not installed are left out."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else []
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "processors": os.cpu_count(),
        "gpus": gpus,
        "versions": versions,
    }
