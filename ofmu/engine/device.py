"""Whether the device that a config names is on this machine, and its memory."""

from __future__ import annotations

import gc
import re
import sys

from ofmu.engine.config import EngineConfig
from ofmu.errors import ConfigError

NO_GPU = "engine.device is 'cuda', but no GPU is visible"
"""What is wrong on a machine without a GPU."""
NO_GPU_FIX = "use 'auto' or 'cpu'"
"""The settings of ``engine.device`` that work there."""

LESS_MEMORY = "lower engine.micro_batch_size or evaluation.batch_size"
"""The settings that need less memory and change no result."""

_CPU_ALLOCATOR = "DefaultCPUAllocator"
"""Torch's allocator for the CPU raises a RuntimeError that names it."""


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


def out_of_memory(error: BaseException) -> str | None:
    """Return what to say if an error means that memory ran out, and None for any other error."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    if not on_gpu and not isinstance(error, MemoryError) and _CPU_ALLOCATOR not in str(error):
        return None
    amount = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
    asked = f" (no room for {amount[1]})" if amount else ""
    return (
        f"{'The GPU' if on_gpu else 'This machine'} ran out of memory{asked}: {LESS_MEMORY}; 'ofmu plan' "
        "shows what fits"
    )


def release_memory() -> None:
    """Give unused memory of this process back, so that another process on the same machine or card can have it."""
    # A closed engine may be part of a cycle.
    gc.collect()
    # A process that has not imported torch holds no GPU memory.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
