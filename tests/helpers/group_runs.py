"""Runs in worker groups of a local Ray cluster: their processes, their histories, and damage to both."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray


def history_of(run: Path) -> list[dict[str, Any]]:
    """Return the rounds that a run has recorded."""
    file = run / "history.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def worker_processes(ray_folder: Path) -> set[int]:
    """Return the process ids of the train workers of this test's cluster."""
    found = set()
    for process in psutil.process_iter(["cmdline", "environ"]):
        title = (process.info["cmdline"] or [""])[0]
        ours = (process.info["environ"] or {}).get("RAY_TMPDIR") == str(ray_folder)
        if ours and title.startswith("ray::") and "RayTrainWorker" in title:
            found.add(process.pid)
    return found


@contextmanager
def in_mid_run(run: Path, rounds: int, act: Callable[[], Any], seconds: float = 300) -> Iterator[list[Any]]:
    """Call ``act`` in a thread once the run has recorded ``rounds`` rounds. Yield the list that gets its result.

    The list stays empty if the run does not get there within ``seconds``.
    """
    results: list[Any] = []

    def wait_and_act() -> None:
        deadline = time.monotonic() + seconds
        while len(history_of(run)) < rounds:
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        results.append(act())

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    yield results
    thread.join()


def kill_a_worker(ray_folder: Path) -> int:
    """SIGKILL one train worker of this test's cluster. Return its process id."""
    victim = min(worker_processes(ray_folder))
    os.kill(victim, signal.SIGKILL)
    return victim


def wait_for_free_cpus(count: int, seconds: float = 60) -> None:
    """Wait until the joined cluster has ``count`` free CPUs. Fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while ray.available_resources().get("CPU") != count and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources().get("CPU") == count
