"""One rank of :func:`ofmu.testing.run_on_ranks`: ``python -m ofmu.testing.worker SPECS OUTCOMES``."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import torch

from ofmu.io.ranks import launched_ranks
from ofmu.testing.runs import RunSpec, run


def _exit_with(parent: int) -> None:
    """End this process when its parent has ended: the parent may be killed in the middle of a test."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(specs: Path, outcomes: Path) -> None:
    """Execute the runs in the JSON file ``specs``. Rank 0 writes the outcomes to ``outcomes``."""
    threading.Thread(target=_exit_with, args=(os.getppid(),), daemon=True).start()
    found = [run(RunSpec.model_validate(spec)) for spec in json.loads(specs.read_text(encoding="utf-8"))]
    if launched_ranks().rank == 0:
        torch.save([vars(outcome) for outcome in found], outcomes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
