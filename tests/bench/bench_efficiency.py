"""How much of its slots' time a search spends on trials: the quickstart on two slots, for real.

    python tests/bench/bench_efficiency.py                 # the whole quickstart: some minutes on two idle cores
    python tests/bench/bench_efficiency.py --trials 6      # a look

``efficiency`` is the sum of the trials' own seconds over slots × the time from the first trial's start to the last
one's end. What is missing to 1 is told apart: ``between`` is the time that slots wait from one trial to the next,
``tail`` the time that a slot has nothing left to do while the last trial runs, which shrinks with more trials.
``before`` is the time from the command's start to the first trial's: the models to be prepared and Ray's start.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Span = tuple[float, float]


def spans(run_dir: Path) -> list[Span]:
    """Return when each trial of the run began and ended, as times of day, by their beginnings."""
    found = []
    for path in run_dir.glob("trials/*/metrics.json"):
        ended = path.stat().st_mtime
        found.append((ended - float(json.loads(path.read_text())["metrics"]["seconds"]), ended))
    return sorted(found)


def by_slot(trials: list[Span], slots: int) -> list[list[Span]]:
    """Return the trials of each slot: one that begins follows the one that ended last before it."""
    lines: list[list[Span]] = [[] for _ in range(slots)]
    for trial in trials:
        # Ends are read from a file's time, which may lie a little after the next trial's start.
        free = [line for line in lines if not line or line[-1][1] <= trial[0] + 0.25]
        max(free or lines, key=lambda line: line[-1][1] if line else 0.0).append(trial)
    return lines


def main() -> None:
    """Run the search and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="further overrides of the quickstart's config")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="e", dir="/tmp") as folder:
        run_dir = Path(folder) / "run"
        changes = [f"search.num_trials={arguments.trials}", f"search.max_concurrent_trials={arguments.slots}"]
        command = [sys.executable, "-m", "ofmu", "search", "--run-dir", str(run_dir), *changes, *arguments.overrides]
        environment = {**os.environ, "RAY_TMPDIR": folder}
        started = time.time()
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        trials = spans(run_dir)
    first, last = trials[0][0], max(end for _, end in trials)
    useful, whole = sum(end - begin for begin, end in trials), arguments.slots * (last - first)
    lines = by_slot(trials, arguments.slots)
    gaps = [late[0] - early[1] for line in lines for early, late in itertools.pairwise(line)]
    idle = sum(max(gap, 0.0) for gap in gaps)
    tail = sum(last - line[-1][1] for line in lines if line)
    print(
        f"{len(trials)} trials on {arguments.slots} slots: efficiency {useful / whole:.3f}; "
        f"between {idle / whole:.3f} (median {statistics.median(gaps) if gaps else 0:.2f} s a trial), "
        f"tail {tail / whole:.3f}; {last - first:.0f} s, before {first - started:.0f} s; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
