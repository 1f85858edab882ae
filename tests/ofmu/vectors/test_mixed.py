"""Weights in bf16 beside masters in fp32: small steps add up, gradients are those of the rounded weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from largest_tensor import LargestTensor
from ofmu.engine.checkpoint import load_checkpoint, save_checkpoint
from ofmu.engine.cost import CostTracker
from ofmu.engine.kept_parameters import KeptParameters
from ofmu.engine.torch import TorchEngine
from ofmu.kept_round import KeptRound
from ofmu.vectors.base import Displacement
from ofmu.vectors.masked import MaskedSpace
from ofmu.vectors.mixed import MixedPrecisionSpace, join, split_
from ofmu.vectors.optimizers import ShardOptimizer
from ofmu.vectors.whole import ReplicatedSpace

INTEGERS = st.integers(-(2**31), 2**31 - 1)
# Powers of two, the smallest normal number, ties between two bf16 numbers, the largest numbers, infinity and 0.
NOTABLE = st.sampled_from([0x3F800000, 0x00800000, 0x3F808000, 0x3F818000, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000, 0])
SIGNS = st.sampled_from([0, -(2**31)])
NEAR_NOTABLE = st.builds(lambda bits, step, sign: max(0, bits + step) + sign, NOTABLE, st.integers(-3, 3), SIGNS)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 50))
    module.register_buffer("frequencies", torch.rand(4))
    return module


@given(st.lists(INTEGERS | NEAR_NOTABLE, min_size=1, max_size=40))
def test_a_master_is_its_weight_and_its_remainder(bits: list[int]) -> None:
    masters = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    weights = torch.empty(len(bits), dtype=torch.bfloat16)
    remainders = torch.empty(len(bits), dtype=torch.int16)
    split_(masters, weights, remainders)
    joined, nan = join(weights, remainders), masters.isnan()
    assert torch.equal(joined.view(torch.int32)[~nan], masters.view(torch.int32)[~nan])
    assert bool(joined[nan].isnan().all())
    assert torch.equal(weights.isnan(), nan)
    # PyTorch's rounding differs only between two numbers that are equally near, where it takes the even one.
    rounded = masters.to(torch.bfloat16)
    tie = (masters.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(weights[~nan & ~tie], rounded[~nan & ~tie])
    upwards = weights.view(torch.int16).int() - rounded.view(torch.int16).int()
    assert bool(((upwards == 0) | (upwards == 1))[~nan].all())


def test_all_finite_bf16_numbers_and_their_neighbours_come_back() -> None:
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        masters = (upper + lower).view(torch.float32)
        masters = masters[~masters.isnan()]
        weights, remainders = masters.to(torch.bfloat16), torch.empty(len(masters), dtype=torch.int16)
        split_(masters, weights, remainders)
        assert torch.equal(join(weights, remainders).view(torch.int32), masters.view(torch.int32))


def test_weights_are_rounded_masters_and_buffers_are_not() -> None:
    module, plain = network(), network()
    plain[3].requires_grad_(False)
    module[3].requires_grad_(False)
    space = MixedPrecisionSpace(module)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    for parameter, before in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter, before.to(torch.bfloat16))
    assert module.frequencies.dtype == torch.float32
    assert torch.equal(space.masters()[0], ReplicatedSpace(plain).masters()[0])


def test_steps_below_the_resolution_of_the_weights_add_up_in_the_masters() -> None:
    module = nn.Linear(4, 4, bias=False)
    nn.init.ones_(module.weight)
    space = MixedPrecisionSpace(module)
    # bf16 has no number between 1 and 1.0078. A step of 0.001 alone is lost there.
    step = [torch.full((16,), 0.001)]
    for _ in range(8):
        space.displace(space.snapshot(), Displacement(1.0, ((1.0, step),)))
    assert torch.allclose(space.masters()[0], torch.tensor(1.008))
    assert torch.equal(module.weight, torch.full((4, 4), 1.0078125, dtype=torch.bfloat16))
    with space.preserving_parameters() as origin:
        space.displace(origin, Displacement(5.0, ((1.0, step),)))
        assert module.weight[0, 0].item() > 1.01
    assert torch.equal(module.weight, torch.full((4, 4), 1.0078125, dtype=torch.bfloat16))


@pytest.mark.parametrize("rows", [1, 3])
def test_gradients_are_those_of_the_rounded_weights_in_fp32(rows: int) -> None:
    module = network()
    rounded = copy.deepcopy(module).to(torch.bfloat16)
    space = MixedPrecisionSpace(module)
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
    space = MixedPrecisionSpace(module)
    space.add_to_parameters([torch.full_like(space.masters()[0], 1e-4)], 1.0)
    save_checkpoint(tmp_path, space, {"parameters": space.snapshot()}, {}, rank=0, world_size=1)
    other = MixedPrecisionSpace(network())
    other.restore(load_checkpoint(tmp_path, other)[1]["parameters"])
    assert torch.equal(other.masters()[0], space.masters()[0])


def test_the_engine_rounds_weights_only_if_asked() -> None:
    plain, mixed = network(), network()
    TorchEngine(plain, CostTracker())
    TorchEngine(mixed, CostTracker(), rounded=True)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert {p.dtype for p in mixed.parameters()} == {torch.bfloat16}


def test_steps_of_every_rule_are_those_of_plain_masters() -> None:
    """AdamW, SGD and displacements read and write pieces; a space of plain fp32 tensors takes the same steps."""
    mixed, plain = MixedPrecisionSpace(network()), ReplicatedSpace(network())
    direction = [torch.randn(len(plain.masters()[0]), generator=torch.Generator().manual_seed(1))]
    for rule in ("adamw", "adamw_8bit", "sgd", "normalized"):
        for space in (mixed, plain):
            optimizer = ShardOptimizer(space, rule, 1e-3, weight_decay=0.1)
            optimizer.step(direction)
            optimizer.step(direction, factor=0.5)
        assert torch.equal(mixed.masters()[0], plain.masters()[0]), rule
    assert mixed.parameter_norm() == pytest.approx(plain.parameter_norm(), rel=1e-12)
    for (name, found), (other, wanted) in zip(mixed.gather_parameters(), plain.gather_parameters(), strict=True):
        assert name == other
        assert torch.equal(found, wanted)
    for space in (mixed, plain):
        space.round_parameters(torch.bfloat16)
    assert torch.equal(mixed.masters()[0], plain.masters()[0])


def test_weights_outside_of_a_mask_keep_their_bits() -> None:
    module = network()
    space = MixedPrecisionSpace(module)
    before = space.masters()[0]
    mask = torch.arange(len(before)) % 3 == 0
    masked = MaskedSpace(space, [mask])
    ShardOptimizer(masked, "adamw", 1e-3, weight_decay=0.1).step([torch.ones_like(before)])
    after = space.masters()[0]
    assert torch.equal(after[~mask], before[~mask])
    assert bool((after[mask] != before[mask]).all())


def test_the_parameters_can_be_kept_on_the_disk_and_in_memory(tmp_path: Path) -> None:
    space = MixedPrecisionSpace(network())
    before = space.masters()[0]
    on_disk, kept = KeptParameters(space, tmp_path), KeptRound.of(1, space)
    space.add_to_parameters([torch.ones_like(before)], 0.1)
    after = space.masters()[0]
    with on_disk.in_place():
        assert torch.equal(space.masters()[0], before)
    assert torch.equal(space.masters()[0], after)
    assert torch.equal(kept.theta[0], before)
    assert torch.equal(KeptRound.of(2, space, kept).theta[0], after)
    space.restore([before])
    assert torch.equal(space.masters()[0], before)


def test_other_types_than_fp32_are_refused() -> None:
    with pytest.raises(ValueError, match="masters in fp32"):
        MixedPrecisionSpace(network().double())


def test_a_step_never_forms_a_whole_fp32_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ofmu.vectors.base._PIECE", 256)
    monkeypatch.setattr("ofmu.vectors.base._CHUNK", 256)
    space = MixedPrecisionSpace(network())
    direction = [torch.ones_like(space.masters()[0])]
    optimizer = ShardOptimizer(space, "adamw", 1e-3)
    optimizer.step(direction)
    moments = [part for vector in optimizer.vectors().values() for part in vector]
    with LargestTensor([space._weights, space._remainders, *direction, *moments]) as seen:
        optimizer.step(direction)
        space.displace(direction, Displacement(0.1, ((1.0, direction),)))
        space.parameter_norm()
    assert seen.largest <= 4 * 256


def short_vectors(length: int) -> tuple[MixedPrecisionSpace, list[list[torch.Tensor]]]:
    """Return a space of so many weights whose gradients are in bf16, and three random vectors of gradients."""
    space = MixedPrecisionSpace(nn.Linear(1, length, bias=False), gradients=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    vectors = [space.gradient_zeros() for _ in range(3)]
    for (part,) in vectors:
        part.copy_(torch.randn(length, generator=generator) + 0.1)
    return space, vectors


def test_sums_over_gradients_in_bf16_have_the_digits_of_fp32() -> None:
    space, (one, two, three) = short_vectors(300_000)
    (x,), (y,), (z,) = ([part.double() for part in vector] for vector in (one, two, three))
    assert space.dots((one, two), (one, one)) == pytest.approx([float(x @ y), float(x @ x)], rel=1e-6)
    assert space.norm(one) == pytest.approx(float(x.norm()), rel=1e-6)
    terms = (0.3, one), (-0.7, two), (1 / 3, three)
    total = 0.3 * x - 0.7 * y + z / 3
    assert space.norm_of_sum(*terms) == pytest.approx(float(total.norm()), rel=1e-6)
    # A vector of gradients is rounded once, however many terms it has.
    (combined,) = space.combine(*terms)
    assert combined.dtype == torch.bfloat16
    assert float((combined.double() - total.float().bfloat16().double()).norm() / total.norm()) < 1e-4
    space.add(one, two, 1 / 3)
    assert torch.equal(one[0], torch.add(x.float(), y.float(), alpha=1 / 3).bfloat16())
    exact = space.zeros()
    space.add(exact, two, 1 / 3)
    assert exact[0].dtype == torch.float32
    torch.testing.assert_close(exact[0].double(), y / 3, rtol=1e-6, atol=0)


def test_steps_along_gradients_in_bf16_keep_masters_and_moments_in_fp32() -> None:
    for rule in ("adamw", "adamw_8bit", "sgd", "normalized"):
        short, plain = MixedPrecisionSpace(network(), gradients=torch.bfloat16), ReplicatedSpace(network())
        (direction,) = short.gradient_zeros()
        direction.copy_(torch.randn(len(direction), generator=torch.Generator().manual_seed(1)))
        for space, vector in ((short, [direction]), (plain, [direction.float()])):
            optimizer = ShardOptimizer(space, rule, 1e-3, weight_decay=0.1)
            optimizer.step(vector)
            optimizer.step(vector, factor=0.5)
            assert {part.dtype for moment in optimizer.vectors().values() for part in moment} <= {torch.float32}
        torch.testing.assert_close(short.masters()[0], plain.masters()[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("width", [8, 1200])
def test_a_gradient_in_bf16_is_that_of_fp32_rounded_once_a_pass(width: int) -> None:
    """The wide embedding has more than a million weights, whose gradient goes to the vector in parts."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(900, width), nn.Linear(width, 50))
    short, plain = (MixedPrecisionSpace(copy.deepcopy(module), gradients=t) for t in (torch.bfloat16, torch.float32))
    found, wanted = short.gradient_zeros(), plain.gradient_zeros()
    for space, vector in ((short, found), (plain, wanted)):
        with space.accumulating_in(vector, 1 / 3):
            space._module(torch.tensor([3, 5, 3])).float().square().sum().backward()
    assert torch.equal(found[0], wanted[0].bfloat16())
