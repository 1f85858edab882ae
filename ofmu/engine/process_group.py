"""The process group of the ranks: joining it, and a safe exit of the interpreter."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
import warnings
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import default_pg_timeout
from torch.distributed.rendezvous import rendezvous

from ofmu.errors import ClusterError
from ofmu.io.ranks import Ranks, check_launch, drop_stale_ranks, launched_ranks
from ofmu.io.text import listed

NOTICE_SECONDS = 5.0
"""After this time the user is told that ranks are missing."""
WAIT_SECONDS = 300.0
"""After this time a run ends if ranks are missing."""


def number_of_ranks() -> int:
    """Return the number of ranks of the process group, or of the launcher if there is no group yet.

    Raises:
        ClusterError: as :func:`ofmu.io.ranks.check_launch` raises it.
    """
    if dist.is_initialized():
        return dist.get_world_size()
    check_launch()
    return launched_ranks().world_size


def join_process_group(device: torch.device) -> bool:
    """Use the existing process group, or join torchrun's, or make a group of one process.

    A group of one process is in memory and opens no port.

    Returns:
        Whether this call made a group of one process.

    Raises:
        ClusterError: a rank of the launcher has not come within :data:`WAIT_SECONDS`, two ranks have the same GPU, or
            as :func:`ofmu.io.ranks.check_launch` raises it.
    """
    if device.type != "cuda":
        _wait_for_gloo_at_exit()
    if dist.is_initialized():
        return False
    backend = "nccl" if device.type == "cuda" else "gloo"
    check_launch()
    ranks = launched_ranks()
    if ranks.world_size > 1:
        _set_missing_variables(ranks)
        store = _meet(ranks, _card(device))
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world_size)
        return False
    stale = drop_stale_ranks()
    if stale is not None:
        warnings.warn(stale, stacklevel=2)
    _set_missing_variables(ranks)
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return True


def _set_missing_variables(ranks: Ranks) -> None:
    """Set the variables that DeepSpeed reads. srun and mpirun set others, and one process has none."""
    numbers = {"RANK": ranks.rank, "WORLD_SIZE": ranks.world_size, "LOCAL_RANK": ranks.local_rank}
    place = {} if ranks.world_size > 1 else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in {**{name: str(number) for name, number in numbers.items()}, **place}.items():
        if not os.environ.get(name):
            os.environ[name] = value


def _card(device: torch.device) -> str:
    """Return what tells this process's GPU from all others; an empty text on the CPU."""
    if device.type != "cuda":
        return ""
    return f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"


def _meet(ranks: Ranks, card: str) -> Any:
    """Return the store of the ranks, once every rank has come."""
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    who = f"Rank {ranks.rank} of {ranks.world_size}"
    notice = threading.Timer(
        NOTICE_SECONDS, print, [f"{who} waits for the other ranks at {place}"], {"file": sys.stderr, "flush": True}
    )
    notice.daemon = True
    notice.start()
    limit = timedelta(seconds=WAIT_SECONDS)
    try:
        store, _, _ = next(rendezvous("env://", ranks.rank, ranks.world_size, timeout=limit))
        names = [f"ofmu/rank/{rank}" for rank in range(ranks.world_size)]
        store.set(names[ranks.rank], card or "here")
        store.wait(names, limit)
        shared = None
        if card:
            shared = _shared_card([store.get(name).decode() for name in names])
            read = [f"{name}/read" for name in names]
            store.set(read[ranks.rank], "read")
            if shared is not None and ranks.rank == 0:
                # Rank 0 may hold the store, from which the others have to read before it ends.
                store.wait(read, limit)
    except (RuntimeError, OSError, ValueError) as error:
        raise ClusterError(
            f"{who} found no other ranks at {place} within {WAIT_SECONDS:g} seconds: start every rank, or, to run "
            "alone, set WORLD_SIZE=1"
        ) from error
    finally:
        notice.cancel()
    if shared is not None:
        raise ClusterError(shared)
    store.set_timeout(default_pg_timeout)
    return store


def _shared_card(cards: list[str]) -> str | None:
    """Return what to say if two ranks have the same GPU: NCCL would end with a message about its own variables."""
    for card in cards:
        ranks = [str(rank) for rank, each in enumerate(cards) if each == card]
        if len(ranks) > 1:
            return (
                f"Ranks {listed(ranks)} have the same GPU of machine {card.split()[0]}: start one rank per GPU, or set "
                "engine.device to 'cpu'"
            )
    return None


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
