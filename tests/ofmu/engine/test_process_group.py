from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

LATE = """
import time, torch, torch.distributed as dist
from ofmu.engine.process_group import join_process_group

class Slow:
    def __del__(self, clock=time.monotonic):
        end = clock() + 0.5
        while clock() < end:
            pass
        print("freed", flush=True)

join_process_group(torch.device("cpu"))
group = dist.group.WORLD  # DeepSpeed keeps such a reference. destroy_process_group then ends no thread of the group.
tensor = torch.ones(1)
tensor.slow = Slow()
dist.all_reduce(tensor, async_op=True)
del tensor
"""


@pytest.mark.slow
def test_a_process_exits_normally_while_a_gloo_thread_frees_a_tensor() -> None:
    """The thread needs half a second of Python to free the tensor, and the interpreter shuts down meanwhile."""
    process = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=120)
    assert (process.returncode, process.stdout.strip()) == (0, "freed"), process.stderr


JOIN = """
import sys, torch, torch.distributed as dist
from ofmu.engine import process_group

process_group.NOTICE_SECONDS, process_group.WAIT_SECONDS = 0.2, 1.5
try:
    alone = process_group.join_process_group(torch.device("cpu"))
except process_group.ClusterError as error:
    print("error:", error)
else:
    print("joined", alone, dist.get_world_size())
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _join(port: int, **mark: str) -> subprocess.CompletedProcess[str]:
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # An engine in this process has set LOCAL_RANK for DeepSpeed.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "LOCAL_"))}
    return subprocess.run(
        [sys.executable, "-c", JOIN], capture_output=True, text=True, timeout=60, env=environment | ranks | mark
    )


@pytest.mark.slow
def test_ranks_that_no_launcher_started_are_not_waited_for() -> None:
    process = _join(free_port())
    assert process.stdout.strip() == "joined True 1", process.stderr
    assert "RANK=0 WORLD_SIZE=2 is set but no launcher started this process" in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("role", ["holds the store", "uses a store that is gone"])
def test_a_wait_for_ranks_says_so_and_ends(role: str) -> None:
    port = free_port()
    mark = {"TORCHELASTIC_RUN_ID": "none"}
    if role != "holds the store":
        mark["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    process = _join(port, **mark)
    place = f"127.0.0.1:{port}"
    assert f"Rank 0 of 2 waits for the other ranks at {place}" in process.stderr
    assert process.stdout.startswith(f"error: Rank 0 of 2 found no other ranks at {place} within 1.5 seconds")


@pytest.mark.slow
def test_a_rank_that_is_missing_in_a_store_of_the_launcher_ends_the_wait() -> None:
    """torchrun's agent holds the store, so the store itself does not wait for all ranks."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    process = _join(store.port, TORCHELASTIC_RUN_ID="none", TORCHELASTIC_USE_AGENT_STORE="True")
    assert "found no other ranks" in process.stdout, process.stderr


RANK_OF_SRUN = """
import os, torch, torch.distributed as dist
from ofmu.engine.build import build_engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.testing import tiny_classifier

engine = build_engine(tiny_classifier(), EngineConfig(device="cpu", threads=1), CostTracker())
total = torch.tensor([float(engine.rank + 1)])
dist.all_reduce(total)
print(engine.rank, engine.world_size, float(total), os.environ["LOCAL_RANK"], flush=True)
engine.close()
"""


@pytest.mark.ranks
def test_ranks_of_srun_meet_at_the_place_that_the_user_names() -> None:
    taken = ("TORCHELASTIC", "SLURM", "OMPI", "PMI", "MASTER", "RANK", "WORLD", "LOCAL_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(taken)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "SLURM_STEP_ID": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_OF_SRUN],
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_TASKS": "2"},
        )
        for rank in (0, 1)
    ]
    try:
        printed = [process.communicate(timeout=100)[0].splitlines()[-1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert printed == ["0 2 3.0 0", "1 2 3.0 1"]


RANK_WITH_CARD = """
import sys, torch
from ofmu.engine import process_group

process_group._card = lambda device: sys.argv[1]
try:
    process_group.join_process_group(torch.device("cpu"))
except process_group.ClusterError as error:
    print("error:", error)
else:
    print("joined")
"""


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("cards", "printed"),
    [
        (
            ["node GPU-1", "node GPU-1"],
            "error: Ranks 0 and 1 have the same GPU of machine node: start one rank per GPU",
        ),
        (["node GPU-1", "node GPU-2"], "joined"),
        (["", ""], "joined"),
    ],
)
def test_ranks_that_share_a_gpu_are_refused(cards: list[str], printed: str) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_WITH_CARD, card],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, card in enumerate(cards)
    ]
    try:
        outputs = [process.communicate(timeout=100)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(output.startswith(printed) for output in outputs), outputs
