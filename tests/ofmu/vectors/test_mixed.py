"""Weights in bf16 beside masters in fp32: small steps add up, gradients are those of the rounded weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ofmu.engine.checkpoint import load_checkpoint, save_checkpoint
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.vectors.base import Displacement
from ofmu.vectors.mixed import MixedPrecisionSpace
from ofmu.vectors.whole import ReplicatedSpace


def network() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 50))
    module.register_buffer("frequencies", torch.rand(4))
    return module


def test_weights_are_rounded_masters_and_buffers_are_not() -> None:
    module, plain = network(), network()
    plain[3].requires_grad_(False)
    module[3].requires_grad_(False)
    space = MixedPrecisionSpace(module, torch.bfloat16)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    for parameter, before in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter, before.to(torch.bfloat16))
    assert module.frequencies.dtype == torch.float32
    assert torch.equal(space.masters()[0], ReplicatedSpace(plain).masters()[0])


def test_steps_below_the_resolution_of_the_weights_add_up_in_the_masters() -> None:
    module = nn.Linear(4, 4, bias=False)
    nn.init.ones_(module.weight)
    space = MixedPrecisionSpace(module, torch.bfloat16)
    # bf16 has no number between 1 and 1.0078. A step of 0.001 alone is lost there.
    step = [torch.full((16,), 0.001)]
    for _ in range(8):
        space.displace(space.snapshot(), Displacement(1.0, ((1.0, step),)))
    assert torch.allclose(space.masters()[0], torch.tensor(1.008))
    assert torch.equal(module.weight, torch.full((4, 4), 1.0078125, dtype=torch.bfloat16))
    with space.preserving_parameters() as origin:
        space.displace(origin, Displacement(5.0, ((1.0, step),)))
        assert float(module.weight[0, 0]) > 1.01
    assert torch.equal(module.weight, torch.full((4, 4), 1.0078125, dtype=torch.bfloat16))


@pytest.mark.parametrize("rows", [1, 3])
def test_gradients_are_those_of_the_rounded_weights_in_fp32(rows: int) -> None:
    module = network()
    rounded = copy.deepcopy(module).to(torch.bfloat16)
    space = MixedPrecisionSpace(module, torch.bfloat16)
    total = space.zeros()
    expected = [torch.zeros_like(p, dtype=torch.float32) for p in rounded.parameters()]
    for row in range(rows):
        ids = torch.tensor([row, row + 7])
        with space.accumulating_in(total, 0.5):
            module(ids).float().square().sum().backward()
        rounded.zero_grad()
        rounded(ids).float().square().sum().backward()
        for part, parameter in zip(expected, rounded.parameters(), strict=True):
            part += 0.5 * parameter.grad.float()
    assert total[0].dtype == torch.float32
    for found, wanted in zip(space.gather(total).values(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_checkpoint_holds_the_masters(tmp_path: Path) -> None:
    module = network()
    space = MixedPrecisionSpace(module, torch.bfloat16)
    space.masters()[0].add_(1e-4)
    save_checkpoint(tmp_path, space, {"parameters": space.snapshot()}, {}, rank=0, world_size=1)
    other = MixedPrecisionSpace(network(), torch.bfloat16)
    other.restore(load_checkpoint(tmp_path, other)[1]["parameters"])
    assert torch.equal(other.masters()[0], space.masters()[0])


def test_the_engine_rounds_weights_only_if_asked() -> None:
    plain, mixed = network(), network()
    TorchEngine(plain, CostTracker())
    TorchEngine(mixed, CostTracker(), weights=torch.bfloat16)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert {p.dtype for p in mixed.parameters()} == {torch.bfloat16}
