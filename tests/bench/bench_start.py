"""How long ``ofmu --help`` takes against ``python -c pass``: run ``python tests/bench/bench_start.py``."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 10
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "ofmu --help": [sys.executable, "-m", "ofmu", "--help"],
    "ofmu search --help": [sys.executable, "-m", "ofmu", "search", "--help"],
}


def seconds(command: list[str]) -> float:
    """Return how long one run of ``command`` took."""
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Print medians, taken in turns so that a busy machine slows all alike, and ratios."""
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(REPEATS)]
    medians = {name: statistics.median(times[name] for times in rounds) for name in COMMANDS}
    bare = medians["python -c pass"]
    for name, median in medians.items():
        print(f"{name:<20} {median * 1000:7.1f} ms  {median / bare:5.1f} x python -c pass")


if __name__ == "__main__":
    main()
