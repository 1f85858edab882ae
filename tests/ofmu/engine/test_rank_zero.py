"""Two real ranks, in a group whose collectives wait for two seconds only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ofmu.engine.rank_zero import barrier, on_rank_0
from ofmu.errors import ModelError
from ofmu.testing import run_script_on_ranks

SCRIPT = """
import json, os, sys, threading, time
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from filelock import FileLock
from torch.distributed.distributed_c10d import _set_pg_timeout
from ofmu.engine.process_group import join_process_group
from ofmu.engine.rank_zero import barrier, on_rank_0
from ofmu.engine.saving import save_on_rank_0
from ofmu.errors import ModelError, OfmuError, StorageError
from ofmu.io.cache import content_key
from ofmu.tasks.collective_cache import CollectiveCache

LIMIT, LONG = 2.0, 4.0
folder = Path(sys.argv[1])
join_process_group(torch.device("cpu"))
dist.barrier()  # the ranks may start seconds apart
_set_pg_timeout(timedelta(seconds=LIMIT))
rank, found = dist.get_rank(), {}

def outcome(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def slow(result):
    time.sleep(LONG)
    return result

def fail(error):
    time.sleep(LONG)
    raise error

found["result"] = outcome(lambda: on_rank_0(lambda: slow({"of rank": rank})))
found["OfmuError"] = outcome(lambda: on_rank_0(lambda: fail(ModelError("no such model"))))
found["other error"] = outcome(lambda: on_rank_0(lambda: fail(OSError("a bug"))))

def together():
    total = torch.tensor([float(rank + 1)])
    dist.all_reduce(total)
    return float(total)

found["together"] = outcome(lambda: on_rank_0(lambda: slow(together()), meanwhile=together))
if rank == 0:
    time.sleep(LONG)
found["barrier"] = outcome(barrier)

cache = CollectiveCache(folder / "cache")

def build(directory):
    (directory / "file").write_text(f"by rank {rank}")
    return slow({"seconds": LONG})

entry = outcome(lambda: cache.get_or_create("models", {"a": 1}, build, collective=False))
found["alone"] = [(entry.path / "file").read_text(), entry.created] if not isinstance(entry, str) else entry
found["failed"] = outcome(lambda: cache.get_or_create("models", {"a": 2}, lambda _: fail(StorageError("full")),
                                                      collective=False))

def hold(lock):
    with lock:
        time.sleep(LONG)

if rank == 0:  # as another process that builds the same entry
    lock = FileLock(folder / "cache" / "models" / f".{content_key({'a': 3})}.lock", thread_local=False)
    other = threading.Thread(target=hold, args=(lock,))
    other.start()
    time.sleep(0.5)
barrier()

def quick(directory):
    if rank == 0:
        (directory / "file").write_text("short")
    return {}

entry = outcome(lambda: cache.get_or_create("models", {"a": 3}, quick))
found["locked"] = entry.created if not isinstance(entry, str) else entry

class Space:
    def shapes(self):
        return {"w": torch.Size([2])}

    def gather_parameters(self):
        dist.all_reduce(torch.ones(1))
        yield "w", torch.arange(2.0)

kept = []

def save(weights):
    kept.append(weights.collect())
    time.sleep(LONG)

def refuse(weights):
    raise StorageError("full")

def fail_at_the_check(weights):
    weights.collect()
    fail(ModelError("another weight"))

found["saved"] = outcome(lambda: save_on_rank_0(Space(), torch.bfloat16, save))
found["kept"] = [str(weights["w"].dtype) for weights in kept]
found["not saved"] = outcome(lambda: save_on_rank_0(Space(), torch.float32, refuse))
found["not checked"] = outcome(lambda: save_on_rank_0(Space(), torch.float32, fail_at_the_check))
found["total"] = outcome(together)
(folder / f"{rank}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    run_script_on_ranks(script, 2, str(folder), timeout=200)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.ranks
@pytest.mark.timeout(250)
def test_other_ranks_wait_for_rank_0_beyond_the_limit_of_a_collective(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["result"] == {"of rank": 0}
        assert found["together"] == 3.0
        assert found["barrier"] is None
        assert found["total"] == 3.0


@pytest.mark.ranks
@pytest.mark.timeout(250)
def test_other_ranks_hear_of_a_failure(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert first["OfmuError"] == second["OfmuError"] == "ModelError: no such model"
    assert first["other error"] == "OSError: a bug"
    assert second["other error"] == "RunError: Rank 0 ended with OSError: its message says why"


@pytest.mark.ranks
@pytest.mark.timeout(250)
def test_other_ranks_wait_while_rank_0_fills_the_cache_or_waits_for_its_lock(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["alone"] == ["by rank 0", True]
        assert found["failed"] == "StorageError: full"
        assert found["locked"] is True


@pytest.mark.ranks
@pytest.mark.timeout(250)
def test_other_ranks_wait_while_rank_0_saves_and_checks(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["saved"] is None
        assert found["not saved"] == "StorageError: full"
        assert found["not checked"] == "ModelError: another weight"
    assert [found["kept"] for found in ranks] == [["torch.bfloat16"], []]


GONE = """
import os, sys, time
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store
from ofmu.engine.rank_zero import _CALLS, on_rank_0

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)

def die():
    while _get_default_store().add(_CALLS.format(1), 0) == 0:  # rank 1 may still be joining the group
        time.sleep(0.01)
    os._exit(3)

try:
    on_rank_0(die)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.ranks
def test_other_ranks_end_with_the_process_of_rank_0(tmp_path: Path) -> None:
    """Rank 0 holds the store here, as it does without torchrun."""
    script, port = tmp_path / "script.py", free_port()
    script.write_text(GONE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    first, second = (
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(port)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for rank in (0, 1)
    )
    try:
        assert first.wait(timeout=100) == 3
        started = time.monotonic()
        assert second.communicate(timeout=100)[0].startswith("ClusterError Rank 1 waited for rank 0, whose process is")
        assert time.monotonic() - started < 30
    finally:
        for process in (first, second):
            process.kill()


def test_one_process_works_alone() -> None:
    assert on_rank_0(lambda: 3, meanwhile=lambda: pytest.fail("there is no other rank")) == 3
    with pytest.raises(ModelError):
        on_rank_0(raise_model_error)
    barrier()


def raise_model_error() -> None:
    raise ModelError("no such model")
