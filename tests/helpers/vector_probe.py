"""Checks of one vector space on every rank; any failed assertion fails the rank."""

from __future__ import annotations

import sys

import torch

import trajectory
from ofmu.engine.build import build_engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.losses import AnswerLoss


def close(found: float, wanted: float, relative: float = 1e-5) -> bool:
    return abs(found - wanted) <= relative * abs(wanted)


def main(stage: int, offload: str, micro_batch_size: int) -> None:
    torch.set_num_threads(1)
    # fresh memory then holds NaN, so whatever reads padding that nobody wrote is found out
    torch.use_deterministic_algorithms(True, warn_only=True)
    loss, rows, others = AnswerLoss(0), trajectory.rows(7, 1), trajectory.rows(7, 2)
    alone = TorchEngine(trajectory.tiny_llama(), CostTracker())
    settings = EngineConfig(zero_stage=stage, offload=offload, micro_batch_size=micro_batch_size)
    engine = build_engine(trajectory.tiny_llama(), settings, CostTracker())
    space = engine.space

    value, gradient = engine.gradient(loss, rows)
    expected_value, expected = alone.gradient(loss, rows)
    _, other = engine.gradient(loss, others)
    _, expected_other = alone.gradient(loss, others)
    assert close(value, expected_value)
    full, wanted = space.gather(gradient), alone.space.gather(expected)
    assert full.keys() == wanted.keys()
    for name in wanted:
        assert (full[name] - wanted[name]).norm() <= 2e-5 * wanted[name].norm(), name
    norms = space.dots((gradient, gradient), (gradient, other))
    for found, right in zip(norms, alone.space.dots((expected, expected), (expected, expected_other)), strict=True):
        assert close(found, right, 1e-4), (found, right)

    parameters = alone.space.gather(alone.space.masters())
    for name, tensor in space.gather(space.masters()).items():
        assert torch.equal(tensor, parameters[name]), name

    assert close(space.norm(space.masters()), alone.space.norm(alone.space.masters())), "padding must not count"

    with space.preserving_parameters() as origin:
        space.set_offset(origin, gradient, 1e-2)
        moved, _ = engine.gradient(loss, rows)
        alone.space.set_offset(alone.space.snapshot(), expected, 1e-2)
        assert close(moved, alone.gradient(loss, rows)[0]), "the forward pass must see displaced masters"
        assert not close(moved, value)
    again_value, again = engine.gradient(loss, rows)
    assert again_value == value
    for before, after in zip(gradient, again, strict=True):
        assert torch.equal(before, after), "restoring must put back the same bits"


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
