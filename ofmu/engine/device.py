"""Whether the device that a config names is on this machine, and its memory."""

from __future__ import annotations

import gc
import sys

from ofmu.engine.config import EngineConfig
from ofmu.errors import ConfigError

NO_GPU = "engine.device is 'cuda', but no GPU is visible"
"""What is wrong on a machine without a GPU."""
NO_GPU_FIX = "use 'auto' or 'cpu'"
"""The settings of ``engine.device`` that work there."""


def check_device(config: EngineConfig) -> None:
    """Check that this process sees a GPU, if the config names one.

    Raises:
        ConfigError: it sees none.
    """
    if config.device != "cuda":
        return
    # Torch takes seconds to import, and most configs leave the device to it.
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"{NO_GPU}: {NO_GPU_FIX}")


def release_memory() -> None:
    """Give unused memory of this process back, so that another process on the same machine or card can have it."""
    # A closed engine may be part of a cycle.
    gc.collect()
    # A process that has not imported torch holds no GPU memory.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
