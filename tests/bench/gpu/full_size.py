"""A Llama-3.2-1B-shaped model at full size: bytes a parameter beside the plan's, tokens a second and MFU of steps.

MFU is the share of the card's peak that the FLOPs of :func:`gpu.shapes.gradient_flops` reach. An inner or outer step is
counted in gradient evaluations as a run counts them, its products included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from gpu.settings import Figures, Row, Settings, Skip, case_row, engine_for, free_memory, need_deepspeed
from gpu.shapes import LLAMA_1B, TINY, Shape, gradient_flops, peak_flops, planned_round
from gpu.timed import Timed, time_rounds

PLAIN = {"name": "finetune", "steps": 100, "round_steps": 1, "lr": 1e-6}
OFMU = {
    "name": "ofmu", "outer_steps": 100, "inner_steps": 1, "inner_lr": 1e-4, "outer_lr": 1e-6,
    "similarity_threshold": -1.0, "forget_margin": 20.0, "derivative_check_every": 0,
}  # fmt: skip
DERIVATIVES: Mapping[str, Mapping[str, Any]] = {
    "fp32": {"derivative": "central"},
    # bf16 takes no difference, so the outer step must be a plain product: decorrelation by projection.
    "bf16": {"derivative": "reverse_over_forward", "decorrelation": "projection"},
}
STAGES: Mapping[str, int | None] = {"fp32": None, "bf16": 2}
LENGTH = 512
GOAL = 0.9
_SECONDS_OF_A_GRADIENT = 0.35
"""A minibatch is made smaller until its gradient takes no longer, so that OFMU's rounds end in time."""
_SHARE = 0.92
"""Share of the card that the plan may fill: CUDA and the libraries take a part of it."""


def measure(settings: Settings) -> Iterator[Row]:
    for precision in ("fp32", "bf16"):
        yield from _steps(settings, precision)


def _steps(settings: Settings, precision: str) -> Iterator[Row]:
    """Yield a row for the plain step, OFMU's inner step, and OFMU's outer step."""
    plain: list[Timed] = []
    chosen = {"rows": 2 if settings.tiny else 8}
    length = 16 if settings.tiny else LENGTH
    shape = TINY if settings.tiny else LLAMA_1B

    def timed(method: Mapping[str, Any], rounds: int) -> tuple[Timed, dict[str, Any]]:
        if precision == "bf16":
            need_deepspeed()
        engine = fitting_engine(settings, shape, method, precision, chosen["rows"], length)
        while True:
            try:
                found = time_rounds(settings, shape, method, engine, rows=chosen["rows"], length=length, rounds=rounds)
                return found, engine
            except torch.OutOfMemoryError:
                # The plan was wrong. The row then shows a micro-batch below the planned one.
                size = engine["micro_batch_size"] // 2
            free_memory()
            if not size:
                raise RuntimeError("one row at a time runs out of memory, although the plan finds room")
            engine = engine | {"micro_batch_size": size}

    def plain_step() -> Figures:
        found, engine = timed(PLAIN, 3)
        while found.per_round("outer") > _SECONDS_OF_A_GRADIENT and chosen["rows"] > 1:
            chosen["rows"] //= 2
            found, engine = timed(PLAIN, 3)
        plain.append(found)
        return figures(settings, shape, precision, found, "outer", length, engine, PLAIN, chosen["rows"])

    config = {"method": PLAIN, "engine": engine_for(settings, STAGES[precision], precision=precision), "length": length}
    yield case_row(f"plain fine-tuning step, {precision}", plain_step, config=config)

    method = {**OFMU, **DERIVATIVES[precision]}
    label = f"step of OFMU ({', '.join(DERIVATIVES[precision].values())}), {precision}"
    both: dict[str, Figures] = {}

    def ofmu_round() -> Figures:
        if not plain:
            raise Skip("there is no plain step to compare with")
        found, engine = timed(method, 1 if precision == "fp32" else 2)
        for phase in ("inner", "outer"):
            own = dict(figures(settings, shape, precision, found, phase, length, engine, method, chosen["rows"]))
            own["share of plain"] = rate(found, shape, phase, length) / rate(plain[0], shape, "outer", length)
            both[phase] = own
        return both["inner"]

    # Tiny shapes show that the part works. Their seconds are those of Python.
    goals = {} if settings.tiny else {"share of plain": (">=", GOAL)}
    config = {
        "method": method,
        "engine": engine_for(settings, STAGES[precision], precision=precision),
        "length": length,
    }
    yield case_row(f"inner {label}", ofmu_round, config=config, goals=goals)
    if "outer" in both:
        yield Row(f"outer {label}", both["outer"], config, goals)


def fitting_engine(
    settings: Settings, shape: Shape, method: Mapping[str, Any], precision: str, rows: int, length: int
) -> dict[str, Any]:
    """Return the engine with the largest micro-batch that the plan finds room for.

    Raises:
        Skip: the plan finds room for no micro-batch.
    """
    stage = STAGES[precision]
    if settings.device != "cuda":
        return engine_for(settings, stage, precision=precision)
    card, size, needed = torch.cuda.get_device_properties(0).total_memory, rows, 0.0
    while size >= 1:
        engine = engine_for(settings, stage, precision=precision, micro_batch_size=size)
        _, needed = planned_round(shape, method, engine, rows=rows, length=length, lora=False, cuda=True)
        if needed <= _SHARE * card:
            return engine
        size //= 2
    raise Skip(f"the plan needs {needed / 2**30:.0f} GiB with one row at a time, and the card has {card / 2**30:.0f}")


def rate(found: Timed, shape: Shape, phase: str, length: int) -> float:
    """Return the FLOP/s of a phase."""
    return gradient_flops(shape, found.tokens[phase], length) / found.seconds[phase]


def figures(
    settings: Settings,
    shape: Shape,
    precision: str,
    found: Timed,
    phase: str,
    length: int,
    engine: Mapping[str, Any],
    method: Mapping[str, Any],
    rows: int,
) -> Figures:
    """Return the figures of one phase."""
    planned, _ = planned_round(
        shape, method, engine, rows=rows, length=length, lora=False, cuda=settings.device == "cuda"
    )
    flops, peak = rate(found, shape, phase, length), card_peak(settings, precision)
    return {
        "s": found.per_round(phase),
        "gradients": found.evaluations[phase] / found.rounds,
        "tokens/s": found.tokens[phase] / found.seconds[phase],
        "TFLOP/s": flops / 1e12,
        "MFU": flops / peak if peak else None,
        "bytes/parameter": found.peak / found.parameters,
        "planned": planned / found.parameters,
        "rows": rows,
        "micro-batch": engine.get("micro_batch_size"),
        "planned micro-batch": fitting_engine(settings, shape, method, precision, rows, length).get("micro_batch_size"),
    }


def card_peak(settings: Settings, precision: Any) -> float | None:
    """Return the peak of this card, None on a CPU and on an unknown card."""
    if settings.device != "cuda":
        return None
    return peak_flops(torch.cuda.get_device_name(0), precision)
