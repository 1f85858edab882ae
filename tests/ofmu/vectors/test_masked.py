"""The space in which a mask decides which weights may change: everything that adds to its vectors stays inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ofmu.engine.base import Engine
from ofmu.engine.build import build_engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.testing import tiny_language_task, tiny_llama
from ofmu.vectors.base import Vector
from ofmu.vectors.masked import MaskedSpace

TASK = tiny_language_task()
LOSS, ROWS = TASK.loss, TASK.forget_rows[:5]
DEEPSPEED = [
    pytest.param({"backend": "deepspeed", "zero_stage": stage}, marks=pytest.mark.slow, id=f"stage{stage}")
    for stage in (0, 2, 3)
]


@pytest.fixture(params=[pytest.param({"backend": "torch"}, id="torch"), *DEEPSPEED])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine with micro-batches of two rows, in which about half of the weights may change."""
    config = EngineConfig(**request.param, device="cpu", micro_batch_size=2)
    engine = build_engine(tiny_llama("eager"), config, CostTracker())
    mask = [part.abs() > part.abs().median() for part in engine.space.masters()]
    engine.space = MaskedSpace(engine.space, mask)
    yield engine
    engine.close()


def assert_inside(engine: Engine, vector: Vector) -> None:
    space: Any = engine.space
    for part, mask in zip(vector, space._mask, strict=True):
        assert float(part[mask].norm()) > 0
        assert not part[~mask].any()


def test_gradients_are_zero_outside_the_mask(engine: Engine) -> None:
    assert_inside(engine, engine.gradient(LOSS, ROWS)[1])


@pytest.mark.parametrize("forward_mode", [False, True], ids=["double backward", "reverse over forward"])
def test_exact_products_are_zero_outside_the_mask(engine: Engine, forward_mode: bool) -> None:
    _, gradient = engine.gradient(LOSS, ROWS)
    assert_inside(engine, engine.hvp(LOSS, ROWS, gradient, forward_mode=forward_mode))
    # A product that is added keeps what the vector has inside the mask.
    added = engine.hvp(LOSS, ROWS, gradient, into=engine.space.combine((1.0, gradient)), forward_mode=forward_mode)
    assert_inside(engine, added)


def test_the_derivative_of_a_product_is_zero_outside_the_mask(engine: Engine) -> None:
    _, gradient = engine.gradient(LOSS, ROWS)
    product = engine.space.gradient_zeros()
    engine.hvp_derivative(LOSS, ROWS, gradient, gradient, into=product, scale=1.0)
    assert_inside(engine, product)


def test_only_what_lies_outside_the_mask_is_cleared(engine: Engine) -> None:
    space: Any = engine.space
    vector = [torch.ones_like(part) for part in space.masters()]
    space.clear_frozen(vector)
    for part, mask in zip(vector, space._mask, strict=True):
        assert torch.equal(part, mask.to(part))
