"""The ``engine`` section of a config file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ofmu.config.base import PositiveInt, Section


class EngineConfig(Section):
    """Where the model's parameters and gradients live."""

    backend: Literal["deepspeed", "torch"] = "deepspeed"
    """``torch``: one process, no DeepSpeed; for notebooks, float64 and comparisons."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    precision: Literal["fp32", "bf16"] = "fp32"
    offload: Literal["none", "cpu"] = "none"
    """``cpu``: fp32 masters and gradient shards live in host memory (stages 1 to 3)."""
    micro_batch_size: PositiveInt | None = None
    """Rows per forward pass and rank; None: all of the rank's rows at once."""
    gradient_checkpointing: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = None
    """Torch threads per process; None leaves torch's own choice."""
