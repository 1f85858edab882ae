"""A search of real runs in a process of its own: ``search_s3_driver.py URI CONFIG.json FLAG``.

The first process that ends the second outer step of trial 1 leaves the file FLAG, wipes the trial's directory here
and kills itself. Every outer step is written to FLAG's neighbour ``steps.txt``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from cluster.storage.mirror import Mirror
from cluster.train.trainer import run_trial
from tune import ParetoSearch


def executor(flag: str) -> Any:
    def execute(config: Any, cluster: Any, trial_dir: Path, prepared: Any, *, mirror: Mirror) -> Any:
        from ofmu.preparer import prepare

        def heard(record: dict[str, Any]) -> None:
            with Path(flag).with_name("steps.txt").open("a") as stream:
                stream.write(f"{trial_dir.name} {record['outer_step']}\n")
            if trial_dir.name == "00001" and record["outer_step"] == 2 and not Path(flag).exists():
                Path(flag).touch()
                shutil.rmtree(trial_dir)
                os.kill(os.getpid(), signal.SIGKILL)

        return run_trial(config, cluster, trial_dir, prepare(config), callback=heard, mirror=mirror)

    return execute


if __name__ == "__main__":
    uri, config, flag = sys.argv[1:]
    ParetoSearch(json.loads(Path(config).read_text()), run_dir=uri, executor=executor(flag)).run()
