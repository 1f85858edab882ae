"""The cost of a run: gradient evaluations, tokens, seconds by phase, and peak memory per rank."""

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
    """Counts the cost of a run.

    One gradient evaluation is a forward and a backward pass of one global minibatch, whatever the number of ranks and
    micro-batches. A double backward pass counts as two evaluations and a triple backward pass as four, since each
    further derivative doubles the work.
    """

    gradient_evaluations: float = 0
    """A whole number, unless passes read a share of a minibatch: see :meth:`counting`."""
    forward_evaluations: int = 0
    """Forward passes without a backward pass, such as the passes of a frozen target."""
    tokens: int = 0
    """Tokens that the gradient and forward evaluations read. On images: the number of images."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """Wall-clock seconds by phase."""
    _share: float = 1

    @contextmanager
    def counting(self, share: float) -> Iterator[None]:
        """Count a gradient evaluation inside the block as ``share`` of one: its rows are that share of a minibatch."""
        before, self._share = self._share, share
        try:
            yield
        finally:
            self._share = before

    def count(self, evaluations: int, tokens: int) -> None:
        """Add gradient evaluations. ``tokens`` is what one forward pass of the rows reads."""
        self.gradient_evaluations += evaluations * self._share
        self.tokens += evaluations * tokens

    def count_forward(self, tokens: int) -> None:
        """Add one forward pass over a minibatch of ``tokens`` tokens."""
        self.forward_evaluations += 1
        self.tokens += tokens

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall-clock seconds of the block to the phase ``name``, the work of the GPU included."""
        start = time.perf_counter()
        try:
            yield
            if _uses_gpu():
                # The work that the block started would be counted in the next phase.
                torch.cuda.synchronize()
        finally:
            self.seconds[name] += time.perf_counter() - start

    def state(self) -> dict[str, Any]:
        """Return the counts as JSON values, for a checkpoint."""
        return {
            "gradient_evaluations": self.gradient_evaluations,
            "forward_evaluations": self.forward_evaluations,
            "tokens": self.tokens,
            "seconds": dict(self.seconds),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the counts of a checkpoint. The seconds of this attempt's start-up are added to them."""
        self.gradient_evaluations = state["gradient_evaluations"]
        self.forward_evaluations = int(state["forward_evaluations"])
        self.tokens = int(state["tokens"])
        for name, seconds in state["seconds"].items():
            self.seconds[name] += float(seconds)


def reset_peak_memory() -> None:
    """Let the peak of the GPU's memory begin here, since a process may run several trials."""
    if _uses_gpu():
        torch.cuda.reset_peak_memory_stats()


def _uses_gpu() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def peak_memory_bytes() -> dict[str, int]:
    """Return this process's peak memory in bytes: ``host`` (resident), and ``device`` if there is a GPU.

    The peak of the device begins at :func:`reset_peak_memory`, and the host's at the start of the process.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peaks["device"] = torch.cuda.max_memory_allocated()
    return peaks


def peak_memory_per_rank() -> list[dict[str, int]]:
    """Return :func:`peak_memory_bytes` of every rank, in rank order; collective."""
    own = peak_memory_bytes()
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [own]
    gathered: list[dict[str, int] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return [peaks for peaks in gathered if peaks is not None]
