"""Moments in 8 bits beside exact ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from largest_tensor import LargestTensor
from ofmu.vectors.base import FlatTensor, Vector
from ofmu.vectors.moments import BLOCK, BYTES_PER_VALUE, QuantizedMoment, dynamic_levels
from ofmu.vectors.optimizers import ShardOptimizer, moments_of
from ofmu.vectors.whole import ReplicatedSpace

LENGTHS = st.sampled_from([1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17])


def stored(values: Tensor, *, signed: bool) -> QuantizedMoment:
    moment = QuantizedMoment([FlatTensor.like(values)], signed=signed)
    moment.fill([values])
    return moment


def sample(length: int, seed: int, *, signed: bool) -> Tensor:
    """Return values over many orders of magnitude, a block of zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(length, generator=generator) * 10.0 ** (6 * torch.rand(length, generator=generator) - 6)
    values[BLOCK : 2 * BLOCK] = 0
    return values if signed else values.abs()


@pytest.mark.parametrize("signed", [True, False])
def test_there_are_256_levels_in_order(signed):
    levels = dynamic_levels(signed=signed)
    assert len(levels) == 256
    assert (levels.diff() > 0).all()
    assert levels.abs().max() == 1
    if signed:
        assert set(levels[levels < 0].abs().tolist()) <= set(levels.tolist())
        assert (levels == 0).sum() == 1
    else:
        assert levels.min() > 0


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(0, 999), st.booleans())
def test_a_value_is_read_as_the_nearest_level_of_its_block(length, seed, signed):
    values = sample(length, seed, signed=signed)
    read = stored(values, signed=signed).vector()[0]
    levels = dynamic_levels(signed=signed)
    for start in range(0, length, BLOCK):
        block, found = values[start : start + BLOCK].double(), read[start : start + BLOCK].double()
        choices = levels.double() * block.abs().max()
        nearest = (block[:, None] - choices).abs().min(dim=1).values
        assert torch.allclose((block - found).abs(), nearest, rtol=1e-5, atol=1e-7 * float(block.abs().max()))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(0, 999), st.booleans())
def test_what_was_read_is_stored_without_a_change(length, seed, signed):
    first = stored(sample(length, seed, signed=signed), signed=signed).vector()
    assert torch.equal(stored(first[0], signed=signed).vector()[0], first[0])


def test_pieces_are_stored_as_the_whole():
    values = sample(5 * BLOCK + 3, 1, signed=True)
    moment = QuantizedMoment([FlatTensor.like(values)], signed=True)
    for piece in (slice(2 * BLOCK, len(values)), slice(0, 2 * BLOCK)):
        moment.write(0, piece, values[piece])
    whole = stored(values, signed=True)
    assert torch.equal(moment.vector()[0], whole.vector()[0])
    assert torch.equal(moment.read(0, slice(BLOCK, 3 * BLOCK)), whole.vector()[0][BLOCK : 3 * BLOCK])


def test_a_new_moment_is_zero_and_takes_a_byte_a_value():
    moment = QuantizedMoment([FlatTensor.like(torch.ones(count)) for count in (4 * BLOCK, 3)], signed=False)
    assert [part.tolist() for part in moment.vector()] == [[0.0] * (4 * BLOCK), [0.0] * 3]
    held = sum(part.nbytes for part in (*moment._bytes, *moment._scales))
    assert held == 4 * BLOCK * BYTES_PER_VALUE + 3 + 4
    assert moments_of("adamw_8bit") * 4 == 2 * BYTES_PER_VALUE


def optimizer_on(values: Tensor, rule: str, **options: float) -> tuple[ShardOptimizer, Vector]:
    model = nn.Module()
    model.weights = nn.Parameter(values.clone())
    space = ReplicatedSpace(model)
    return ShardOptimizer(space, rule, 1e-2, **options), space.masters()  # type: ignore[arg-type]


def gradients(length: int, steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale = 10.0 ** (2 * torch.rand(length, generator=generator) - 2)
    return [scale * (1 + torch.randn(length, generator=generator)) for _ in range(steps)]


def test_the_first_step_is_that_of_torch_and_later_steps_stay_near():
    start, given = torch.randn(3 * BLOCK + 5, generator=torch.Generator().manual_seed(1)), gradients(3 * BLOCK + 5, 30)
    weights = nn.Parameter(start.clone())
    reference = torch.optim.AdamW([weights], lr=1e-2, weight_decay=0.1)
    optimizer, masters = optimizer_on(start, "adamw_8bit", weight_decay=0.1)
    for number, gradient in enumerate(given):
        weights.grad = gradient.clone()
        reference.step()
        optimizer.step([gradient])
        if number == 0:
            assert torch.equal(masters[0], weights.detach())
    moved, expected = masters[0] - start, weights.detach() - start
    # The levels of a second moment that is 10,000 times smaller than its block's largest lie 10 % apart.
    assert (moved - expected).norm() < 0.05 * expected.norm()


def test_a_small_gradient_beside_a_large_one_takes_no_long_step():
    start = torch.zeros(BLOCK)
    gradient = torch.full((BLOCK,), 1e-4)
    gradient[0] = 1.0
    optimizer, masters = optimizer_on(start, "adamw_8bit")
    for _ in range(20):
        before = masters[0].clone()
        optimizer.step([gradient])
        assert (masters[0] - before).abs().max() <= 1e-2 * 1.05


def test_a_restored_optimizer_goes_on_bit_for_bit():
    start, given = torch.randn(2 * BLOCK + 9, generator=torch.Generator().manual_seed(1)), gradients(2 * BLOCK + 9, 8)
    whole, expected = optimizer_on(start, "adamw_8bit")
    first, middle = optimizer_on(start, "adamw_8bit")
    for gradient in given:
        whole.step([gradient])
    for gradient in given[:5]:
        first.step([gradient])
    second, masters = optimizer_on(middle[0], "adamw_8bit")
    second.restore(first.steps, first.vectors())
    for gradient in given[5:]:
        second.step([gradient])
    assert torch.equal(masters[0], expected[0])


def test_smaller_pieces_change_no_bit_and_take_less_memory(monkeypatch):
    length = 64 * BLOCK + 9
    start, given = torch.randn(length, generator=torch.Generator().manual_seed(1)), gradients(length, 3)
    found, largest = [], []
    monkeypatch.setattr("ofmu.vectors.base._PIECE", 64 * BLOCK)
    for parts in (1, 8):
        monkeypatch.setattr("ofmu.vectors.optimizers._PARTS_IN_8_BITS", parts)
        optimizer, masters = optimizer_on(start, "adamw_8bit")
        optimizer.step([given[0]])
        kept = [part for moment in optimizer._moments.values() for part in (*moment._bytes, *moment._scales)]
        with LargestTensor([*masters, *given, *kept]) as seen:
            for gradient in given[1:]:
                optimizer.step([gradient])
        found.append(masters[0])
        largest.append(seen.largest)
    assert torch.equal(*found)
    assert largest[0] >= 4 * 64 * BLOCK > 7 * largest[1]


@pytest.mark.parametrize("signed", [True, False])
def test_numbers_beside_a_boundary_go_to_the_right_side(signed):
    levels = dynamic_levels(signed=signed)
    between = (levels[1:] + levels[:-1]) / 2
    numbers = torch.cat([torch.nextafter(between, torch.tensor(end)) for end in (-2.0, 2.0)])

    for start in range(0, len(numbers), BLOCK - 1):
        block = torch.cat([torch.tensor([1.0]), numbers[start : start + BLOCK - 1]])
        moment = stored(block, signed=signed)
        expected = levels[torch.bucketize(block, between)]
        assert torch.equal(moment.vector()[0], expected)
