"""Start several processes that form one process group, and run methods in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ofmu.io.ranks import LAUNCHER
from ofmu.testing.runs import RunOutcome, RunSpec

_POLL_SECONDS = 0.02
_GRACE_SECONDS = 5.0
"""After one rank has failed, the other ranks get this long to report their own errors."""
_LOG_CHARACTERS = 4000


def run_on_ranks(specs: Sequence[RunSpec], world_size: int = 2, *, timeout: float = 240) -> list[RunOutcome]:
    """Execute runs one after the other on ``world_size`` new processes. Return the outcomes of rank 0.

    One call with many specs is faster than many calls: every call imports PyTorch and DeepSpeed once per rank. The
    processes see the modules that this process can import.

    Args:
        specs: the runs. The default engine of a :class:`RunSpec` does not use the process group; give each run an
            ``EngineConfig`` with ``backend="deepspeed"``.
        world_size: number of processes.
        timeout: seconds for all runs together.

    Raises:
        AssertionError: a rank failed, or the runs took longer than ``timeout``.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, outcomes = Path(folder) / "specs.json", Path(folder) / "outcomes.pt"
        given.write_text(json.dumps([spec.model_dump(mode="json") for spec in specs]), encoding="utf-8")
        _start_ranks(["-m", "ofmu.testing.worker", str(given), str(outcomes)], world_size, timeout)
        return [RunOutcome(**fields) for fields in torch.load(outcomes, weights_only=True)]


def run_script_on_ranks(script: Path, world_size: int, *arguments: str, timeout: float = 240) -> None:
    """Execute ``python script arguments`` once per rank of a new process group.

    Raises:
        AssertionError: a rank failed, or the script took longer than ``timeout`` seconds.
    """
    _start_ranks([str(script), *arguments], world_size, timeout)


def _start_ranks(arguments: Sequence[str], world_size: int, timeout: float) -> None:
    # Rank 0 would have to bind a port that was free a moment ago. A store in this process has no such race.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = os.environ | {
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        LAUNCHER: "ofmu.testing",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path if not path.endswith(".zip")),
    }
    with ExitStack() as stack:
        # A rank that fills a pipe would block, and the other ranks would wait for it in a collective.
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(world_size)]
        ranks = [
            subprocess.Popen(
                [sys.executable, *arguments],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            for rank, log in enumerate(logs)
        ]
        try:
            failed = _wait(ranks, timeout)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        if failed is not None:
            raise AssertionError(f"{failed}\n" + "\n".join(_tail(rank, log) for rank, log in enumerate(logs)))


def _wait(ranks: Sequence[subprocess.Popen[bytes]], timeout: float) -> str | None:
    """Wait until all ranks have ended. Return None if all succeeded, else one sentence."""
    deadline, first_failure = time.monotonic() + timeout, None
    while True:
        codes = [process.poll() for process in ranks]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None and first_failure is None:
            first_failure = f"Rank {failed} of {len(ranks)} ended with exit status {codes[failed]}."
            deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
        if None not in codes:
            return first_failure
        if time.monotonic() > deadline:
            return first_failure or f"The {len(ranks)} ranks did not end within {timeout:g} seconds."
        time.sleep(_POLL_SECONDS)


def _tail(rank: int, log: IO[str]) -> str:
    log.seek(0)
    return f"--- the end of what rank {rank} printed ---\n{log.read()[-_LOG_CHARACTERS:]}"
