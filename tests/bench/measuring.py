"""What several benchmarks share: rows of random tokens, runs on them, and the memory of a process or of a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ofmu.data.rows import Example
    from ofmu.engine.base import Engine
    from ofmu.engine.config import EngineConfig
    from ofmu.engine.cost import CostTracker
    from ofmu.methods.base import Method

# torch and ofmu are imported by the functions: a benchmark's parent process starts children and needs neither.


def random_rows(count: int, vocabulary: int, length: int, *, prompt: int, seed: int = 1) -> list[Example]:
    """Return rows of ``length`` random tokens each, whose answers begin behind ``prompt`` tokens."""
    import torch

    from ofmu.data.rows import Example

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (count, length), generator=generator).tolist()
    return [Example(tuple(row), prompt) for row in ids]


def build_run(
    model: Any,
    engine: EngineConfig,
    method: Mapping[str, Any],
    forget_rows: Sequence[Example],
    retain_rows: Sequence[Example],
    *,
    tracker: CostTracker | None = None,
    lora: bool = False,
    quantized: bool = False,
) -> tuple[Engine, Method[Any]]:
    """Return the engine and the method of a run, as the trainer builds them. The caller closes the engine."""
    from ofmu.engine.build import build_engine
    from ofmu.engine.cost import CostTracker
    from ofmu.methods.base import Context
    from ofmu.methods.build import build_method
    from ofmu.methods.registry import method_config
    from ofmu.models.config import AdapterConfig
    from ofmu.models.lora import add_adapters
    from ofmu.models.quantization import is_quantized, quantize_model
    from ofmu.testing import MemoryLanguageTask

    settings = method_config(method).model_validate(method)
    settings.check(engine, "auto")
    if quantized and not is_quantized(model):
        quantize_model(model)
    add_adapters(model, AdapterConfig(kind="lora" if lora else "none"), 0)
    built = build_engine(model, engine, tracker or CostTracker())
    return built, build_method(Context(built, MemoryLanguageTask(forget_rows, retain_rows), seed=0), settings)


def held_memory(device: str = "cpu") -> int:
    """Return the bytes that this process holds: of the GPU, or resident."""
    if device == "cuda":
        import torch

        return int(torch.cuda.memory_allocated())
    return _status("VmRSS")


def reset_peak_memory(device: str = "cpu") -> int:
    """Return the peak of :func:`held_memory` since the last call, in bytes, and let a new peak begin."""
    if device == "cuda":
        import torch

        peak = int(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        return peak
    peak = _status("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")
    return peak


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")
