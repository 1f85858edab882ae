"""What a run costs: gradient evaluations, tokens, seconds by phase, peak memory per rank."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

PHASES = ("start_up", "inner", "outer", "evaluation")


@dataclass
class CostTracker:
    """Costs counted as method.md counts them: one evaluation is a forward and backward pass of one minibatch.

    A minibatch counts once however many ranks and micro-batches share it. A double backward pass counts as two
    evaluations and a triple as four, since each further derivative doubles the work.
    """

    gradient_evaluations: int = 0
    forward_evaluations: int = 0
    """Forward passes without a backward pass: what reference models and frozen targets cost."""
    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def count(self, evaluations: int, tokens: int) -> None:
        """Add gradient evaluations, and tokens read by one forward pass of the whole minibatch."""
        self.gradient_evaluations += evaluations
        self.tokens += evaluations * tokens

    def count_forward(self, tokens: int) -> None:
        """Add one forward pass over a minibatch of so many tokens."""
        self.forward_evaluations += 1
        self.tokens += tokens

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall-clock seconds spent inside to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores, as JSON values."""
        return {
            "gradient_evaluations": self.gradient_evaluations,
            "forward_evaluations": self.forward_evaluations,
            "tokens": self.tokens,
            "seconds": dict(self.seconds),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's counts; this attempt's own start-up seconds are added to them."""
        self.gradient_evaluations = int(state["gradient_evaluations"])
        self.forward_evaluations = int(state["forward_evaluations"])
        self.tokens = int(state["tokens"])
        for name, seconds in state["seconds"].items():
            self.seconds[name] += float(seconds)


def peak_memory_bytes() -> dict[str, int]:
    """Return this process's peak resident memory, and peak device memory where there is a GPU, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peaks["device"] = torch.cuda.max_memory_allocated()
    return peaks


def peak_memory_per_rank() -> list[dict[str, int]]:
    """Return every rank's peak memory, in rank order; collective."""
    own = peak_memory_bytes()
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [own]
    everyone: list[dict[str, int] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, own)
    return [peaks for peaks in everyone if peaks is not None]
