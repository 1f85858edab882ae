"""Memory of a large vocabulary: peaks of a pass and of scoring with whole logits, and with logits in chunks.

    python tests/bench/bench_logits.py [--vocabularies 49152 131072] [--rows 4] [--length 256]

The model is so small that nearly all of the memory is logits. Each figure is the peak of resident memory of a fresh
process above what the process held with the model loaded. The plan counts the same passes on the meta device.
Freed tensors go back to the system at once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from measuring import held_memory, random_rows, reset_peak_memory

GIB = 2**30
KINDS = ("nll", "kl", "scoring")


def shape_of(vocabulary: int) -> dict[str, Any]:
    """Return the ``config.json`` of a Llama with this vocabulary."""
    return {
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip


def measure(vocabulary: int, kind: str, way: str, dtype_name: str, rows: int, length: int) -> float:
    """Return the peak in bytes above the loaded model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ofmu.evaluation.scoring.sharding import Shard
    from ofmu.evaluation.scoring.teacher_forcing import score_examples
    from ofmu.losses import AnswerLoss
    from ofmu.methods.token_losses import DivergenceLoss
    from ofmu.models.chunked_logits import whole_logits

    torch.set_num_threads(1)
    dtype = getattr(torch, dtype_name)
    shape = shape_of(vocabulary)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.pop("model_type"), **shape), dtype=dtype)
    device = torch.device("cpu")
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda leaf: setattr(leaf, "grad", None))

    def run(count: int, width: int) -> None:
        batch = random_rows(count, vocabulary - 1, width, prompt=1)
        if kind == "scoring":
            score_examples(model, SimpleNamespace(eos_token_id=0, pad_token_id=0), batch, count, Shard())
            return
        loss: Any = AnswerLoss(0)
        if kind == "kl":
            # The target's logits stand as a whole in both ways.
            loss = DivergenceLoss(0, {id(row): torch.zeros(width - 1, vocabulary) for row in batch})
        loss.total(model, batch, device).backward()

    with whole_logits() if way == "whole" else nullcontext():
        run(1, 4)
        before = held_memory()
        reset_peak_memory()
        run(rows, length)
        return reset_peak_memory() - before


def planned(vocabulary: int, kind: str, way: str, dtype_name: str, rows: int, length: int) -> float | None:
    """Return the peak that the plan's passes find, in bytes. None: the plan has no such pass."""
    import torch

    from ofmu.models.config import AdapterConfig
    from ofmu.plan.passes import scoring_pass, training_pass

    shape, dtype = shape_of(vocabulary), getattr(torch, dtype_name)
    if kind == "scoring":
        return (
            scoring_pass(shape, 2, rows, 1, length - 1, 0, dtype=dtype, attention="sdpa")[0] if way != "whole" else None
        )
    if kind == "kl":
        return None
    peaks = training_pass(
        shape, 2, rows, length, attention="sdpa", dtype=dtype, checkpointing=False, adapter=AdapterConfig(),
        whole=way == "whole",
    )  # fmt: skip
    return max(peaks.start, peaks.end)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[49152, 131072])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    print("| vocabulary | pass | type | whole logits, GiB | in chunks, GiB | the plan, GiB |")
    print("|---|---|---|---|---|---|", flush=True)
    for vocabulary in options.vocabularies:
        for kind in options.kinds:
            for dtype in options.types:
                cell = (str(vocabulary), kind, dtype, str(options.rows), str(options.length))
                found = []
                for way in ("whole", "chunks"):
                    command = [sys.executable, __file__, "--measure", way, *cell]
                    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                    found.append(float(result.stdout.splitlines()[-1]))
                count = planned(vocabulary, kind, "chunks", dtype, options.rows, options.length)
                plan = "" if count is None else f"{count / GIB:.2f}"
                print(
                    f"| {vocabulary:,} | {kind} | {dtype} | {found[0] / GIB:.2f} | {found[1] / GIB:.2f} | {plan} |",
                    flush=True,
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        given_way, given_vocabulary, given_kind, given_type, given_rows, given_length = sys.argv[2:8]
        print(measure(int(given_vocabulary), given_kind, given_way, given_type, int(given_rows), int(given_length)))
    else:
        main()
