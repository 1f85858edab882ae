"""Run a command that sees cards which are not there: ``python tests/card [--cards 2] [--gib 16] COMMAND …``.

The numbers are those of the CPU's kernels, and no time means anything. A run shows whether every tensor is where it
belongs, and whether the code for GPUs works at all.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from building import environment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", type=int, default=1)
    parser.add_argument("--gib", type=float, default=16.0, help="memory of each card")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.command:
        parser.error("name a command")
    return subprocess.run(options.command, env=environment(options.cards, int(options.gib * 2**30))).returncode


if __name__ == "__main__":
    sys.exit(main())
