"""What OFMU's inner and outer steps cost beyond their own forward and backward passes.

    python tests/bench/bench_overhead.py [MODEL_DIRECTORY] [--rounds 20] [--stages torch 0 2 3] [--variant first_order]

A Llama of 2.6M parameters, or a saved model, on minibatches of 8 rows, one process: plain PyTorch and DeepSpeed at ZeRO
stages 0, 2, 3. Prints the seconds of the steps over those inside ``loss.total`` and the backward pass, per stage
and loop: 1.0 would be steps whose vector algebra, sampling and updates cost nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from time import perf_counter
from typing import Any

STAGES = ("torch", "0", "2", "3")


def measure(stage: str, rounds: int, directory: str | None, variant: str | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    from ofmu.data.rows import Example
    from ofmu.engine.build import build_engine
    from ofmu.engine.config import EngineConfig
    from ofmu.engine.cost import CostTracker
    from ofmu.losses import AnswerLoss
    from ofmu.methods.base import Context
    from ofmu.methods.ofmu.bilevel import OFMU
    from ofmu.methods.ofmu.config import OfmuConfig
    from ofmu.methods.ofmu.loss import ClampedLoss
    from ofmu.testing import MemoryLanguageTask

    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6}
    if directory:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    else:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=2048, **sizes))
    backend = {"backend": "torch"} if stage == "torch" else {"backend": "deepspeed", "zero_stage": int(stage)}
    engine = build_engine(model, EngineConfig(device="cpu", threads=1, **backend), CostTracker())
    inside = {"seconds": 0.0, "calls": 0}

    def timed(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            started = perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                inside["seconds"] += perf_counter() - started
                inside["calls"] += 1

        return call

    for loss in (AnswerLoss, ClampedLoss):
        loss.total = timed(loss.total)  # type: ignore[method-assign]
    engine._backward = timed(engine._backward)  # type: ignore[method-assign]
    rows = [Example(tuple(torch.randint(1, 2048, (64,)).tolist()), 16) for _ in range(32)]
    terms = {"variant": variant} if variant else {"similarity_threshold": -1.0}
    rates = {"inner_lr": 1e-6, "outer_lr": 1e-6} if directory else {"inner_lr": 1e-4, "outer_lr": 1e-6}
    settings = OfmuConfig.model_validate({"batch_size": 8, "forget_margin": 20.0, **terms, **rates})
    loops = OFMU(Context(engine, MemoryLanguageTask(rows[:16], rows[16:]), seed=0), settings)
    loops._inner_step()
    loops._outer_step()
    for name, step in (("inner", loops._inner_step), ("outer", loops._outer_step)):
        inside |= {"seconds": 0.0, "calls": 0}
        before, started = engine.cost_tracker.gradient_evaluations, perf_counter()
        for _ in range(rounds):
            step()
        whole = perf_counter() - started
        evaluations = (engine.cost_tracker.gradient_evaluations - before) / rounds
        if inside["calls"] != 2 * rounds * evaluations:
            raise RuntimeError(
                f"{inside['calls']} passes were timed for {rounds * evaluations:.0f} gradient evaluations"
            )
        print(
            f"| {stage} | {name} | {evaluations:.0f} | {inside['seconds'] / rounds:.3f} | {whole / rounds:.3f} "
            f"| {whole / inside['seconds']:.3f} |",
            flush=True,
        )
    engine.close()


def main() -> None:
    """Measure each stage in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", help="a saved model")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--variant", choices=["projection", "first_order"], help="of OFMU; default: all terms")
    parser.add_argument("--measure", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.rounds, arguments.directory, arguments.variant)
        return
    print("| engine | step | gradient evaluations | s in passes | s in all | ratio |")
    print("|---|---|---|---|---|---|", flush=True)
    group = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for stage in arguments.stages:
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", stage]
        subprocess.run(command, check=True, env=group | os.environ, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
