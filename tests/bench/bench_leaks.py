"""Memory and open files of one warm process over many tiny runs, at every ZeRO stage.

    python tests/bench/bench_leaks.py [RUNS]

Prints resident memory after a tenth of the runs and after all of them, their ratio, and the open files at both.
"""

from __future__ import annotations

import gc
import subprocess
import sys

METHOD = {
    "name": "ofmu", "outer_steps": 1, "inner_steps": 1, "inner_lr": 1e-3, "outer_lr": 1e-4, "batch_size": 4,
    "similarity_threshold": -1.0,
}  # fmt: skip
"""With the hinge open, a round computes all that a round can."""


def run_once(stage: int) -> None:
    """Run one round of OFMU on a tiny model, and close the engine."""
    from measuring import build_run, random_rows
    from ofmu.engine.config import EngineConfig
    from ofmu.testing import tiny_llama

    model = tiny_llama()
    rows = random_rows(8, model.config.vocab_size, 12, prompt=4)
    engine, method = build_run(
        model, EngineConfig(backend="deepspeed", zero_stage=stage, device="cpu"), METHOD, rows[:4], rows[4:]
    )
    list(method.rounds())
    engine.close()


def measure(stage: int, runs: int) -> None:
    import psutil

    process: psutil.Process = psutil.Process()
    seen: list[tuple[int, int]] = []
    for number in range(1, runs + 1):
        run_once(stage)
        if number in (max(1, runs // 10), runs):
            gc.collect()
            seen.append((process.memory_info().rss, process.num_fds()))
    (early, files), (late, files_late) = seen[0], seen[-1]
    print(
        f"| {stage} | {runs} | {early / 2**20:.0f} | {late / 2**20:.0f} | {late / early:.3f} "
        f"| {files} | {files_late} |",
        flush=True,
    )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(int(sys.argv[2]), int(sys.argv[1]))
    else:
        print("| ZeRO stage | runs | MiB early | MiB late | ratio | files early | files late |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for stage in range(4):
            subprocess.run([sys.executable, __file__, sys.argv[1] if sys.argv[1:] else "200", str(stage)], check=True)
