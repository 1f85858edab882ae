"""Rounds of a method on a GPU or a CPU: seconds and gradient evaluations by phase, and the peak of memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from gpu.settings import Settings
from gpu.shapes import Shape, build_llama
from measuring import build_run, held_memory, random_rows, reset_peak_memory
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker


class PhaseCosts(CostTracker):
    """Counts gradient evaluations and their tokens by phase too."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens_of, self.evaluations_of = Counter[str](), defaultdict[str, float](float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        tokens, evaluations = self.tokens, self.gradient_evaluations
        with super().phase(name):
            yield
        self.tokens_of[name] += self.tokens - tokens
        self.evaluations_of[name] += self.gradient_evaluations - evaluations


@dataclass(frozen=True)
class Timed:
    """What the rounds behind the first one took. The first one fits steps, loads kernels and makes the moments."""

    seconds: Mapping[str, float]
    """By phase."""
    tokens: Mapping[str, float]
    """Of gradient evaluations, by phase. A product counts as the evaluations that the product's tracker counts."""
    evaluations: Mapping[str, float]
    rounds: int
    peak: float
    """Bytes above what the process held before the model was made, the first round included."""
    parameters: int

    def per_round(self, phase: str) -> float:
        """Return the seconds of a round's phase."""
        return self.seconds[phase] / self.rounds


def time_rounds(
    settings: Settings,
    shape: Shape,
    method: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    rows: int,
    length: int,
    rounds: int,
    lora: bool = False,
) -> Timed:
    """Make the model on the device, run one round and then ``rounds`` more, which are timed."""
    vocabulary = shape["vocab_size"]
    forget, retain = (random_rows(rows, vocabulary, length, prompt=length // 4, seed=seed) for seed in (1, 2))
    tracker = PhaseCosts()
    before = held_memory(settings.device)
    reset_peak_memory(settings.device)
    model = build_llama(shape, settings.device, seed=settings.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    run, unlearning = build_run(
        model, EngineConfig.model_validate(engine), {"batch_size": rows, **method}, forget, retain,
        tracker=tracker, lora=lora,
    )  # fmt: skip
    del model
    reset_peak_memory(settings.device)
    try:
        taking = unlearning.rounds()
        next(taking)
        start = _counts(tracker)
        for _ in range(rounds):
            next(taking)
        end = _counts(tracker)
        if settings.device == "cuda":
            torch.cuda.synchronize()
        peak = reset_peak_memory(settings.device) - before
    finally:
        run.close()
    seconds, tokens, evaluations = (
        {phase: later.get(phase, 0) - earlier.get(phase, 0) for phase in ("inner", "outer")}
        for earlier, later in zip(start, end, strict=True)
    )
    return Timed(seconds, tokens, evaluations, rounds, peak, parameters)


def _counts(tracker: PhaseCosts) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    return dict(tracker.seconds), dict(tracker.tokens_of), dict(tracker.evaluations_of)
