"""Bytes per parameter and rank of a method's rounds: weights, vectors, optimizer, buffers and activations together.

    python tests/bench/bench_memory.py [MODEL_DIRECTORY] [--ranks N ...] [--only NAME ...]

The peak of resident memory above the empty process, divided by the number of parameters: once while the model is
loaded, quantised and handed to the engine, and once in the rounds. The empty process has loaded the libraries and has
run the same method on a tiny model. Two rounds run, so that all moments are alive. The rows are short (4 and 4 rows
of 24 tokens), so that little of the peak is activations. Without a directory, the model is a Llama of 34M parameters.

On a processor without kernels for bf16, the settings in bf16 run only if ``--only`` names them: there they take 13 to
20 times as long.

A rank allocates large blocks from the system and returns freed blocks at once, so that the peak is what is alive.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from measuring import build_run, held_memory, random_rows, reset_peak_memory

OFMU_ROUND = {
    "name": "ofmu", "outer_steps": 2, "inner_steps": 1, "inner_update": "normalized",
    "inner_lr": 1e-4, "outer_lr": 1e-6,
    "batch_size": 4,
}  # fmt: skip
OPEN = {**OFMU_ROUND, "similarity_threshold": -1.0, "forget_margin": 20.0}
SIMNPO = {"name": "simnpo", "steps": 2, "round_steps": 1, "lr": 1e-6, "batch_size": 4}
FP32: dict[str, object] = {}
BF16: dict[str, object] = {"precision": "bf16"}
SHORT: dict[str, object] = {**BF16, "gradient_precision": "bf16"}
SETTINGS: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    # name: (method, engine, adapters)
    "ofmu": (OPEN, FP32, ""),
    "ofmu exact": ({**OPEN, "derivative": "exact"}, FP32, ""),
    "ofmu exact bf16": ({**OPEN, "derivative": "exact"}, BF16, ""),
    "ofmu exact bf16, bf16 gradients": ({**OPEN, "derivative": "exact"}, SHORT, ""),
    "ofmu exact bf16, 8-bit moments, bf16 gradients": (
        {**OPEN, "derivative": "exact", "outer_update": "adamw_8bit"}, SHORT, "",
    ),
    "ofmu projection": ({**OPEN, "decorrelation": "projection"}, FP32, ""),
    "ofmu projection, no penalty, bf16": (
        {**OPEN, "decorrelation": "projection", "penalty_weight": 0.0}, BF16, "",
    ),
    "ofmu projection, no penalty, bf16, bf16 gradients": (
        {**OPEN, "decorrelation": "projection", "penalty_weight": 0.0}, SHORT, "",
    ),
    "ofmu none, no penalty": ({**OPEN, "decorrelation": "none", "penalty_weight": 0.0}, FP32, ""),
    "ofmu none, no penalty, bf16": ({**OPEN, "decorrelation": "none", "penalty_weight": 0.0}, BF16, ""),
    "ofmu none, no penalty, bf16, bf16 gradients": (
        {**OPEN, "decorrelation": "none", "penalty_weight": 0.0}, SHORT, "",
    ),
    "ofmu none, no penalty, 8-bit moments": (
        {**OPEN, "decorrelation": "none", "penalty_weight": 0.0, "outer_update": "adamw_8bit"}, FP32, "",
    ),
    "simnpo": (SIMNPO, FP32, ""),
    "simnpo, 8-bit moments": ({**SIMNPO, "update": "adamw_8bit"}, FP32, ""),
    "simnpo, 8-bit moments, checkpointing": (
        {**SIMNPO, "update": "adamw_8bit"}, {"gradient_checkpointing": True, "backend": "torch"}, "",
    ),
    "npo": ({**SIMNPO, "name": "npo"}, FP32, ""),
    "rmu": ({**SIMNPO, "name": "rmu"}, FP32, ""),
    "simnpo bf16": (SIMNPO, BF16, ""),
    "simnpo bf16, 8-bit moments": ({**SIMNPO, "update": "adamw_8bit"}, BF16, ""),
    "simnpo bf16, bf16 gradients": (SIMNPO, SHORT, ""),
    "simnpo bf16, 8-bit moments, bf16 gradients": ({**SIMNPO, "update": "adamw_8bit"}, SHORT, ""),
    "simnpo lora bf16": (SIMNPO, BF16, "lora"),
    "simnpo lora bf16, checkpointing": (SIMNPO, {**BF16, "gradient_checkpointing": True}, "lora"),
    "simnpo lora bf16, micro-batches of 1": (SIMNPO, {**BF16, "micro_batch_size": 1}, "lora"),
    "ofmu none, no penalty, lora bf16": (
        {**OPEN, "decorrelation": "none", "penalty_weight": 0.0}, BF16, "lora",
    ),
    "ofmu lora": (OPEN, FP32, "lora"),
    "ofmu lora 4bit": (OPEN, FP32, "lora 4bit"),
    "ofmu lora 4bit, checkpointing": (OPEN, {"gradient_checkpointing": True, "backend": "torch"}, "lora 4bit"),
    "ofmu exact lora 4bit": ({**OPEN, "derivative": "exact"}, FP32, "lora 4bit"),
    "ofmu exact lora bf16": ({**OPEN, "derivative": "exact"}, BF16, "lora"),
}  # fmt: skip


def measure(name: str, stage: str, directory: str, result: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    from ofmu.engine.config import EngineConfig
    from ofmu.models.config import Attention
    from ofmu.models.language import load_model
    from ofmu.models.quantization import quantized_layers

    method, engine_settings, adapters = SETTINGS[name]
    backend = {"backend": "torch"} if stage == "torch" else {"backend": "deepspeed", "zero_stage": int(stage)}
    config = EngineConfig.model_validate({**backend, **engine_settings, "device": "cpu", "threads": 1})
    attention: Attention = "eager" if "exact" in name else "sdpa"
    quantized = "4bit" in adapters

    def rounds(model: object, vocabulary: int) -> tuple[int, float]:
        """Return the peak of building the engine, and the seconds of the rounds."""
        rows = random_rows(8, vocabulary, 24, prompt=8)
        engine, unlearning = build_run(
            model, config, method, rows[:4], rows[4:], lora=bool(adapters), quantized=quantized
        )
        built = reset_peak_memory()
        begin = time.perf_counter()
        list(unlearning.rounds())
        seconds = time.perf_counter() - begin
        engine.close()
        return built, seconds

    torch.manual_seed(0)
    small = LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        attn_implementation=attention,
    )  # fmt: skip
    rounds(LlamaForCausalLM(small), 500)
    before = held_memory()
    reset_peak_memory()
    if directory and quantized:
        model = load_model(directory, attention, quantized=True)
    elif directory:
        # Mapped weight files count as resident memory: they are copied, so that the map is dropped.
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation=attention)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    else:
        large = LlamaConfig(
            vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
            attn_implementation=attention,
        )  # fmt: skip
        model = LlamaForCausalLM(large)
    size = sum(parameter.numel() for parameter in model.parameters())
    if quantized and directory:
        size += sum(layer.in_features * layer.out_features for layer in quantized_layers(model))
    loaded = reset_peak_memory()
    built, seconds = rounds(model, 8000)
    loaded = max(loaded, built) - before
    peak = reset_peak_memory() - before
    (result / os.environ["RANK"]).write_text(f"{loaded / size} {peak / size} {seconds}")


def settings_for_this_cpu() -> list[str]:
    """Return all settings, or those in fp32 where the processor has no kernels for bf16."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(512, 512, dtype=dtype)
        begin = time.perf_counter()
        for _ in range(4):
            torch.mm(matrix, matrix)
        return time.perf_counter() - begin

    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.bfloat16):
        seconds(dtype)
    if seconds(torch.bfloat16) < 5 * seconds(torch.float32):
        return list(SETTINGS)
    print("bf16 is many times slower than fp32 on this processor: name its settings with --only to measure them")
    return [name for name, (_, engine, _) in SETTINGS.items() if engine.get("precision") != "bf16"]


def main() -> None:
    from ofmu.testing import run_script_on_ranks

    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--stages", nargs="+", default=["torch", "2"])
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS))
    arguments = parser.parse_args()
    # Freed blocks above this size go back to the system at once.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1048576"
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "1048576"
    print("| setting | engine | ranks | bytes a parameter: loading | in rounds | ratio to 1 rank | s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in arguments.only or settings_for_this_cpu():
        for stage in arguments.stages:
            alone = None
            for count in arguments.ranks if stage != "torch" else [1]:
                settings = SETTINGS[name][1]
                if settings.get("backend", stage) != stage:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    script = [str(part) for part in ("--measure", name, stage, arguments.model, folder)]
                    run_script_on_ranks(Path(__file__).resolve(), count, *script, timeout=3000)
                    found = [[float(part) for part in path.read_text().split()] for path in Path(folder).iterdir()]
                loading, peak, seconds = (max(values) for values in zip(*found, strict=True))
                alone = alone or peak
                print(
                    f"| {name} | {stage} | {count} | {loading:.1f} | {peak:.1f} | {peak / alone:.2f} | {seconds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], sys.argv[3], sys.argv[4], Path(sys.argv[5]))
    else:
        main()
