"""What a part of the benchmark gets, and the rows that it yields."""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Figures = Mapping[str, float | int | str | None]


class Skip(Exception):  # noqa: N818  # no fault
    """A part or a case makes no sense on this machine. The message says why."""


@dataclass(frozen=True)
class Settings:
    """The same for all parts."""

    device: str
    """``cuda`` or ``cpu``."""
    tiny: bool
    """Shapes of a few thousand weights, for a machine without a GPU."""
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"device": self.device, "size": "tiny" if self.tiny else "full", "seed": self.seed}


@dataclass(frozen=True)
class Row:
    """One case of a part: its figures, or why there are none."""

    case: str
    figures: Figures = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the case."""
    goals: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """What a figure should be: ``<=`` or ``>=``, and the number."""
    skipped: str | None = None
    failed: str | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        goals = {
            name: {"goal": f"{sign} {number:g}", "met": met(self.figures.get(name), sign, number)}
            for name, (sign, number) in self.goals.items()
        }
        content = {"case": self.case, "figures": dict(self.figures), "config": dict(self.config), "goals": goals}
        reasons = {"skipped": self.skipped, "failed": self.failed}
        return content | {key: reason for key, reason in reasons.items() if reason} | {"seconds": self.seconds}


def met(value: Any, sign: str, number: float) -> bool | None:
    """Return whether a figure meets its goal. None: there is no figure. A NaN meets no goal."""
    if not isinstance(value, int | float):
        return None
    return bool(value <= number if sign == "<=" else value >= number)


def case_row(
    case: str,
    measure: Callable[[], Figures],
    *,
    config: Mapping[str, Any] | None = None,
    goals: Mapping[str, tuple[str, float]] | None = None,
) -> Row:
    """Return the row of one case. A case that raises is a row too, and leaves no memory behind for the next."""
    started, figures, skipped, failed = time.perf_counter(), dict[str, Any](), None, None
    try:
        figures = dict(measure())
    except Skip as reason:
        skipped = str(reason)
    except Exception as error:  # whatever fails here must not stop the other cases
        failed = sentence_of(error)
    free_memory()
    seconds = round(time.perf_counter() - started, 3)
    return Row(case, figures, config or {}, goals or {} if figures else {}, skipped, failed, seconds)


def sentence_of(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def free_memory() -> None:
    """Free the cycles and the cached blocks of a closed engine."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def need_deepspeed() -> None:
    """Skip a case on a machine without DeepSpeed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise Skip("DeepSpeed is not installed")


def need_card(settings: Settings) -> None:
    """Skip a case that only a GPU can show."""
    if settings.device != "cuda":
        raise Skip("there is no CUDA card")


def engine_for(settings: Settings, stage: int | None, **fields: Any) -> dict[str, Any]:
    """Return the engine section of a run on the benchmark's device. ``stage`` None: PyTorch without DeepSpeed."""
    backend = {"backend": "torch"} if stage is None else {"backend": "deepspeed", "zero_stage": stage}
    threads = {} if settings.device == "cuda" else {"threads": 1}
    return {**backend, "device": settings.device, **threads, **fields}
