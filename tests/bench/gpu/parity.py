"""Short runs on this device and at each ZeRO stage, beside the same runs by plain PyTorch on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from gpu.settings import Figures, Row, Settings, Skip, case_row, engine_for, need_card, need_deepspeed
from ofmu.engine.config import EngineConfig
from ofmu.testing import RunOutcome, run, small_spec

METHODS: Mapping[str, Mapping[str, Any]] = {
    # The hinge is open from the start, so that all kinds of derivatives are taken.
    "ofmu": {"outer_steps": 4, "inner_steps": 2, "inner_lr": 0.05, "outer_lr": 1e-3, "similarity_threshold": -1.0},
    "simnpo": {"steps": 8, "round_steps": 2},
}
GOALS = {"losses": ("<=", 1e-3), "weights": ("<=", 0.02)}
"""Relative, and those that the method's contract asks of ZeRO stages and ranks (:mod:`ofmu.testing`)."""


def measure(settings: Settings) -> Iterator[Row]:
    for name, method in METHODS.items():
        yield from Parity(settings, name, method).rows()


class Parity:
    """One method on the CPU by PyTorch, and on the other engines."""

    def __init__(self, settings: Settings, name: str, method: Mapping[str, Any]) -> None:
        self._settings, self._name = settings, name
        self._spec = small_spec(name, settings=method)
        self._wanted = run(self._spec)
        self._on_card: RunOutcome | None = None

    def rows(self) -> Iterator[Row]:
        device = self._settings.device
        # PyTorch on the CPU is the run with which the others are compared.
        for stage in (None, 0, 1, 2, 3) if device == "cuda" else (0, 1, 2, 3):
            backend = "PyTorch" if stage is None else f"ZeRO {stage}"
            engine = engine_for(self._settings, stage)
            config = {"method": self._spec.method.model_dump(mode="json"), "engine": engine}
            label = f"{self._name}, {backend} on {device} against the CPU"
            yield case_row(label, partial(self._compared, stage), config=config, goals=GOALS)
        # Kernels may add in another order at each pass, so two runs of one seed may differ. The figures have no goal.
        yield case_row(f"{self._name}, PyTorch on the card against the same run again", self._again)

    def _compared(self, stage: int | None) -> Figures:
        if stage is not None:
            need_deepspeed()
        found = self._run(stage)
        if stage is None:
            self._on_card = found
        return differences(found, self._wanted)

    def _again(self) -> Figures:
        need_card(self._settings)
        if self._on_card is None:
            raise Skip("the first run failed")
        return differences(self._run(None), self._on_card)

    def _run(self, stage: int | None) -> RunOutcome:
        return run(self._spec.changed(engine=EngineConfig.model_validate(engine_for(self._settings, stage))))


def differences(found: RunOutcome, wanted: RunOutcome) -> Figures:
    """Return the largest relative differences of the losses in the records, and of the weights at the end.

    A weight tensor's difference is relative to the distance that the expected run moved it.
    """
    if len(found.records) != len(wanted.records):
        raise ValueError(f"the run takes {len(found.records)} rounds, and {len(wanted.records)} are expected")
    losses = [
        abs(record[key] - value) / abs(value)
        for record, expected in zip(found.records, wanted.records, strict=True)
        for key, value in expected.items()
        if key.endswith("_loss") and value
    ]
    weights = []
    for name, end in wanted.parameters.items():
        moved = float((end.double() - wanted.start[name].double()).norm())
        apart = float((found.parameters[name].double() - end.double()).norm())
        weights.append(apart / moved if moved else math.inf if apart else 0.0)
    return {"losses": max(losses), "weights": max(weights)}
