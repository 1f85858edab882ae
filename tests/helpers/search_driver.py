"""A search in a process of its own, for tests that kill it: ``search_driver.py RUN_DIR NUM_TRIALS [--resume]``.

Trials wait while a file ``hold`` lies in the run directory, so that a test decides what happens before they end.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from tune import ParetoSearch


def execute(config: Any, cluster: Any, trial_dir: Path, prepared: Any) -> dict[str, float]:
    log = trial_dir.parent.parent / "log.txt"
    with log.open("a") as stream:
        stream.write(f"begin {trial_dir.name}\n")
    time.sleep(0.3)
    while (trial_dir.parent.parent / "hold").exists():
        time.sleep(0.05)
    with log.open("a") as stream:
        stream.write(f"end {trial_dir.name}\n")
    rate = config.method.inner_lr_scale / 40
    return {"ks_statistic": 1 - 5 * rate, "model_utility": 0.6 - 3 * rate * rate}


if __name__ == "__main__":
    run_dir, num_trials, *rest = sys.argv[1:]
    if rest == ["--resume"]:
        ParetoSearch.resume(run_dir, executor=execute)
    else:
        settings = {"search": {"num_trials": int(num_trials), "max_concurrent_trials": 2}}
        ParetoSearch(settings, run_dir=run_dir, executor=execute).run()
