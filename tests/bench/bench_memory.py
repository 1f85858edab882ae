"""Peak memory of one OFMU round per rank, at every ZeRO stage on 1, 2 and 4 CPU ranks.

    python tests/bench/bench_memory.py [RANKS ...]

A Llama of 34M parameters (130 MiB in fp32), AdamW in both loops, so that all of OFMU's vectors are alive: parameters,
g_f, g_r, ∇Φ, the products and four moments. Prints the peak of resident memory above what the process held before the
model, in copies of the fp32 model, and its ratio to one rank's: 1/N would be perfect sharding.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

STAGES = (0, 1, 2, 3)


def measure(stage: int, result: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ofmu.data.rows import Example
    from ofmu.engine.build import build_engine
    from ofmu.engine.config import EngineConfig
    from ofmu.engine.cost import CostTracker
    from ofmu.methods.base import Context
    from ofmu.methods.ofmu.bilevel import OFMU
    from ofmu.methods.ofmu.config import OfmuConfig
    from ofmu.testing import MemoryLanguageTask

    torch.manual_seed(0)

    def engine_of(config: LlamaConfig) -> tuple[object, int]:
        model = LlamaForCausalLM(config)
        size = sum(parameter.numel() * 4 for parameter in model.parameters())
        return build_engine(model, EngineConfig(device="cpu", threads=1, zero_stage=stage), CostTracker()), size

    def one_round(engine: object) -> None:
        rows = [Example(tuple(torch.randint(1, 500, (24,)).tolist()), 8) for _ in range(8)]
        settings = OfmuConfig(
            outer_steps=1, inner_steps=1, inner_update="adamw", inner_lr=1e-5, outer_lr=1e-5, batch_size=4,
            similarity_threshold=-1.0, forget_margin=20.0,
        )  # fmt: skip
        list(OFMU(Context(engine, MemoryLanguageTask(rows[:4], rows[4:]), seed=0), settings).rounds())

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    # what the libraries load at their first step is not the model's
    first, _ = engine_of(LlamaConfig(vocab_size=512, **small))
    one_round(first)
    first.close()  # type: ignore[attr-defined]
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    large = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    engine, size = engine_of(LlamaConfig(vocab_size=8192, **large))
    loaded = _status("VmHWM") - before
    Path("/proc/self/clear_refs").write_text("5")
    one_round(engine)
    copies = (_status("VmHWM") - before) / size
    (result / f"{os.environ['RANK']}").write_text(f"{loaded / size} {copies}")
    engine.close()  # type: ignore[attr-defined]


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def main(counts: list[int]) -> None:
    from ofmu.testing import run_script_on_ranks

    print("| ZeRO stage | ranks | copies of the model while loading | in a round | round, ratio to 1 rank |")
    print("|---|---|---|---|---|", flush=True)
    for stage in STAGES:
        alone = None
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                run_script_on_ranks(Path(__file__).resolve(), count, "--measure", str(stage), folder, timeout=1200)
                found = [[float(part) for part in path.read_text().split()] for path in Path(folder).iterdir()]
            loading, copies = (max(values) for values in zip(*found, strict=True))
            alone = alone or copies
            print(f"| {stage} | {count} | {loading:.2f} | {copies:.2f} | {copies / alone:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        main([int(count) for count in sys.argv[1:]] or [1, 2, 4])
