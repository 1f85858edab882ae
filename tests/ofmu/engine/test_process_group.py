from __future__ import annotations

import subprocess
import sys

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
held = dist.group.WORLD  # as DeepSpeed does, so that destroying the group ends none of its threads
tensor = torch.ones(1)
tensor.slow = Slow()
dist.all_reduce(tensor, async_op=True)
del tensor
"""


def test_a_process_whose_gloo_thread_still_has_a_tensor_exits_normally() -> None:
    """The thread needs Python for half a second to free the tensor, and the interpreter shuts down meanwhile."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "freed"), done.stderr
