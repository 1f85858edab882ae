"""The largest model that takes LoRA over a bf16 base: shapes in rising order, by the plan first and then really."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from gpu.settings import Figures, Row, Settings, Skip, case_row, engine_for, need_deepspeed
from gpu.shapes import LLAMA_1B, LLAMA_3B, LLAMA_8B, SMALL, TINY, Shape, planned_round
from gpu.timed import time_rounds

SHAPES: Mapping[str, Shape] = {"1B": LLAMA_1B, "3B": LLAMA_3B, "8B": LLAMA_8B}
TINY_SHAPES: Mapping[str, Shape] = {"tiny": TINY, "small": SMALL}
METHOD = {
    "name": "ofmu", "outer_steps": 10, "inner_steps": 1, "inner_lr": 1e-3, "outer_lr": 1e-4,
    "similarity_threshold": -1.0, "derivative": "reverse_over_forward", "decorrelation": "projection",
}  # fmt: skip


def measure(settings: Settings) -> Iterator[Row]:
    rows, length = (2, 16) if settings.tiny else (4, 256)
    engine = engine_for(settings, 2, precision="bf16", micro_batch_size=1)
    config = {"method": METHOD, "engine": engine, "adapter": "lora", "rows": rows, "length": length}
    for name, shape in (TINY_SHAPES if settings.tiny else SHAPES).items():
        yield case_row(
            f"LoRA over a bf16 base, {name}", partial(_fit, settings, shape, engine, rows, length), config=config
        )


def _fit(settings: Settings, shape: Shape, engine: Mapping[str, Any], rows: int, length: int) -> Figures:
    need_deepspeed()
    planned = _check_plan(settings, shape, engine, rows, length)
    found = time_rounds(settings, shape, METHOD, engine, rows=rows, length=length, rounds=1, lora=True)
    return {
        "inner s": found.per_round("inner"),
        "outer s": found.per_round("outer"),
        "bytes/parameter": found.peak / found.parameters,
        "planned": planned / found.parameters,
        "GiB": found.peak / 2**30,
        "tokens/s": sum(found.tokens.values()) / sum(found.seconds.values()),
    }


def _check_plan(settings: Settings, shape: Shape, engine: Mapping[str, Any], rows: int, length: int) -> float:
    """Return the planned bytes of a round.

    Raises:
        Skip: the card is too small for the plan.
    """
    cuda = settings.device == "cuda"
    planned, needed = planned_round(shape, METHOD, engine, rows=rows, length=length, lora=True, cuda=cuda)
    if cuda:
        import torch

        card = torch.cuda.get_device_properties(0).total_memory
        if needed > card:
            raise Skip(f"the plan needs {needed / 2**30:.0f} GiB, and the card has {card / 2**30:.0f}")
    return planned
