"""What only a GPU can show, in one table and one JSON file: ``python tests/bench/gpu [--output gpu.json]``.

Needs no Ray. Without a CUDA card, the parts run tiny shapes on the CPU, which shows that they work. DeepSpeed's parts
are skipped where DeepSpeed is missing. The exit status is 1 if a part failed or ran out of time.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
# ``python tests/bench/gpu`` finds the modules of this folder only. The checkout need not be installed.
sys.path[:1] = [str(BENCH.parents[1]), str(BENCH)]

from gpu.benchmark import PARTS, failed, run_parts, show  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="the JSON file (default: gpu.json)")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], metavar="PART")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--size", choices=["auto", "tiny", "full"], default="auto", help="auto: full on a card")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=1.0, help="factor of the parts' limits, for a busy machine")
    parser.add_argument("--commit", help="of a copy without git")
    options = parser.parse_args()
    chosen = [part for part in PARTS if options.parts is None or part.name in options.parts]
    parts = [replace(part, seconds=options.patience * part.seconds) for part in chosen]
    given = {"device": options.device, "size": options.size, "seed": options.seed}
    try:
        result = run_parts(parts, given, options.output, commit=options.commit)
    except OSError as error:
        parser.error(str(error))
    show(result)
    print(f"\n{options.output}")
    return int(failed(result))


if __name__ == "__main__":
    sys.exit(main())
