"""The process group of the ranks: joining it, and a safe exit of the interpreter."""

from __future__ import annotations

import atexit
import os
import time
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore


def join_process_group(device: torch.device) -> bool:
    """Use the existing process group, or join torchrun's, or make a group of one process.

    A group of one process is in memory and opens no port.

    Returns:
        Whether this call made a group of one process.
    """
    if device.type != "cuda":
        _wait_for_gloo_at_exit()
    if dist.is_initialized():
        return False
    backend = "nccl" if device.type == "cuda" else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group(backend)
        return False
    single = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in single.items():
        os.environ.setdefault(name, value)
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return True


@cache
def _wait_for_gloo_at_exit() -> None:
    atexit.register(_wait_for_gloo)


def _wait_for_gloo(poll_seconds: float = 0.01, timeout_seconds: float = 10.0) -> None:
    """Wait until Gloo's threads are idle, so that no thread needs Python while the interpreter shuts down.

    Gloo threads free a collective's tensors after the collective returns. If a thread frees a tensor that has a Python
    object while the interpreter shuts down, the process aborts: "terminate called without an active exception"
    (pytorch/pytorch pull request 179291). The work is done by then, but the exit status is an error. Destroying the
    group does not end the threads, because DeepSpeed holds the group while any of its modules exists.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    idle, deadline = 0, time.monotonic() + timeout_seconds
    # Two idle polls are needed. A thread that waits for Python's lock sleeps too, until this sleep releases the lock.
    while idle < 2 and time.monotonic() < deadline:
        time.sleep(poll_seconds)
        idle = 0 if _gloo_is_busy() else idle + 1


def _gloo_is_busy() -> bool:
    """Return whether one of this process's Gloo threads is running. Without /proc, return False."""
    for task in Path("/proc/self/task").glob("*"):
        try:
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:  # the thread has ended
            continue
        if name == "pt_gloo_runloop" and rest.split()[0] != "S":
            return True
    return False
