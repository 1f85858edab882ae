"""The process group that ranks talk through: joined, and left without harm when the interpreter goes."""

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
    """Use the process group that the launcher made, join torchrun's, or make a group of one.

    A group of one lives in memory and opens no port. Returns whether one was made.
    """
    if device.type != "cuda":
        _settle_gloo_at_exit()
    if dist.is_initialized():
        return False
    backend = "nccl" if device.type == "cuda" else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group(backend)
        return False
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return True


@cache
def _settle_gloo_at_exit() -> None:
    atexit.register(_settle_gloo)


def _settle_gloo(poll_seconds: float = 0.01, timeout_seconds: float = 10.0) -> None:
    """Wait until Gloo's threads are at rest, so that none of them wants the interpreter after it has gone.

    Such a thread lets go of a collective's tensors only after the collective has ended for everybody else. Needs it
    Python for that (a tensor that Python knew) while the interpreter is going, the process aborts with all its work
    done: "terminate called without an active exception" (pytorch/pytorch pull request 179291). Destroying the group
    doesn't end the threads as long as DeepSpeed holds it, and it does so for as long as any of its modules lives.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    at_rest, deadline = 0, time.monotonic() + timeout_seconds
    # twice, since one that waits for Python sleeps as well, until this very sleep makes way for it
    while at_rest < 2 and time.monotonic() < deadline:
        time.sleep(poll_seconds)
        at_rest = 0 if _gloo_is_busy() else at_rest + 1


def _gloo_is_busy() -> bool:
    """Return whether one of this process's Gloo threads is doing something (False where there is no /proc to ask)."""
    for task in Path("/proc/self/task").glob("*"):
        try:
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:  # it has ended since
            continue
        if name == "pt_gloo_runloop" and rest.split()[0] != "S":
            return True
    return False
