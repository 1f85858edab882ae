"""Checks of vector spaces, run on every rank. A failed assertion fails the rank."""

from __future__ import annotations

import json
import sys

import torch

import ofmu.engine.deepspeed
from ofmu.engine.base import Engine
from ofmu.engine.build import build_engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.losses import AnswerLoss
from ofmu.testing import tiny_llama, tiny_rows
from ofmu.vectors.base import Displacement, Vector


def close(actual: float, expected: float, relative: float = 1e-5) -> bool:
    return abs(actual - expected) <= relative * abs(expected)


def check(stage: int, offload: str, micro_batch_size: int) -> None:
    torch.set_num_threads(1)
    # This setting fills new memory with NaN, so a read of uninitialised padding fails the checks.
    torch.use_deterministic_algorithms(True, warn_only=True)
    loss, rows, others = AnswerLoss(0), tiny_rows(7, 1), tiny_rows(7, 2)
    single = TorchEngine(tiny_llama("eager"), CostTracker())
    # Some parameters of the tiny model are larger than a bucket, and others are smaller.
    ofmu.engine.deepspeed.BUCKET_ELEMENTS = 500
    settings = EngineConfig(zero_stage=stage, offload=offload, micro_batch_size=micro_batch_size)
    engine = build_engine(tiny_llama("eager"), settings, CostTracker())
    space = engine.space

    value, gradient = engine.gradient(loss, rows)
    expected_value, expected = single.gradient(loss, rows)
    _, other = engine.gradient(loss, others)
    _, expected_other = single.gradient(loss, others)
    assert close(value, expected_value)
    full, expected_full = space.gather(gradient), single.space.gather(expected)
    assert full.keys() == expected_full.keys()
    for name, tensor in expected_full.items():
        assert (full[name] - tensor).norm() <= 2e-5 * tensor.norm(), name
    dots = space.dots((gradient, gradient), (gradient, other))
    expected_dots = single.space.dots((expected, expected), (expected, expected_other))
    for dot, expected_dot in zip(dots, expected_dots, strict=True):
        assert close(dot, expected_dot, 1e-4), (dot, expected_dot)

    products(engine, single, gradient, expected)

    negative_zeros = [part.fill_(-0.0) for part in space.zeros()]
    for name, tensor in space.gather(negative_zeros).items():
        assert tensor.signbit().all(), f"{name} must be gathered bit for bit"

    parameters = single.space.gather(single.space.masters())
    for name, tensor in space.gather(space.masters()).items():
        assert torch.equal(tensor, parameters[name]), name

    assert close(space.norm(space.masters()), single.space.norm(single.space.masters())), (
        "padding must not change the norm"
    )

    with space.preserving_parameters() as origin:
        space.displace(origin, Displacement(1e-2, [(1.0, gradient)]))
        moved, _ = engine.gradient(loss, rows)
        single.space.displace(single.space.snapshot(), Displacement(1e-2, [(1.0, expected)]))
        assert close(moved, single.gradient(loss, rows)[0]), "the forward pass must use the displaced masters"
        assert not close(moved, value)
    again_value, again = engine.gradient(loss, rows)
    assert again_value == value
    for before, after in zip(gradient, again, strict=True):
        assert torch.equal(before, after), "the parameters must be restored bit for bit"
    engine.close()


def products(engine: Engine, single: Engine, along: Vector, expected_along: Vector) -> None:
    """Compare exact products on ranks with those of one process that holds the whole model."""
    loss, rows = AnswerLoss(0), tiny_rows(5, 3)

    def third(of: Engine, direction: Vector) -> Vector:
        into = of.space.zeros()
        of.hvp_derivative(loss, rows, direction, direction, into=into, scale=0.5)
        return into

    def twice(of: Engine, direction: Vector) -> Vector:
        return of.hvp(loss, rows, direction, into=of.space.zeros(), scale=-2.0)

    def in_forward_mode(of: Engine, direction: Vector) -> Vector:
        # The one process takes a double backward: ZeRO-3 has replaced an operation of this process for its whole life.
        return of.hvp(loss, rows, direction, forward_mode=of is engine, into=of.space.zeros(), scale=-2.0)

    for way in (twice, in_forward_mode, third):
        found = engine.space.gather(way(engine, along))
        for name, tensor in single.space.gather(way(single, expected_along)).items():
            assert (found[name] - tensor).norm() <= 1e-3 * tensor.norm() + 1e-6, name
    assert engine.model.training


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        print("ZeRO stage, offload, micro-batch size:", case, flush=True)
        check(*case)
