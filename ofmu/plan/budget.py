"""The memory that a run may use on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.stat"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
"""Files of the limit, of the reclaimable part, and of the use: of cgroups version 2, and of version 1."""


def device_memory(*, on_gpu: bool) -> int | None:
    """Return the bytes of one GPU, or the bytes that this machine has free. None: there is no GPU, or it is unknown."""
    if on_gpu:
        if not torch.cuda.is_available():
            return None
        return int(torch.cuda.get_device_properties(0).total_memory)
    return host_memory()


def host_memory() -> int | None:
    """Return the bytes of host memory that are available, within the limit of the container. None: unknown."""
    known = [size for size in (_available(), *(_room_in_cgroup(*files) for files in _CGROUPS)) if size is not None]
    return min(known, default=None)


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _room_in_cgroup(limit: Path, stat: Path, usage: Path) -> int | None:
    """Return the limit less what is used and cannot be reclaimed. None: there is no limit."""
    try:
        most, used = int(limit.read_text()), int(usage.read_text())
        fields = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return None
    return max(0, most - used + int(fields.get("inactive_file", 0)))
