"""Runs a function of a test module on several real processes that share a gloo group."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from torch.distributed import TCPStore

ROOT = Path(__file__).resolve().parents[2]


def run_ranks(script: Path, world_size: int, *arguments: str, timeout: float = 240) -> None:
    """Run ``python script arguments`` once per rank; any failure fails the test with that rank's output."""
    # rank 0's own store would race for a port picked in advance, so the store lives here
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = os.environ | {
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(script), *arguments]
    with ExitStack() as stack:
        # files and not pipes: a rank that filled its pipe would stall the others in a collective
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(world_size)]
        processes = [
            subprocess.Popen(
                command,
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            for rank, log in enumerate(logs)
        ]
        try:
            for process in processes:
                process.wait(timeout=timeout)
        finally:
            for process in processes:
                process.kill()
        for process, log in zip(processes, logs, strict=True):
            log.seek(0)
            assert process.returncode == 0, log.read()[-4000:]
