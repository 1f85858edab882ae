from __future__ import annotations

import subprocess
import sys

import pytest

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
