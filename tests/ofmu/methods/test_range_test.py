"""The range test beside closed forms and beside the optimizers' own steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ofmu.engine.build import build_engine
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.errors import ConfigError
from ofmu.methods.range_test import FEWEST_PASSES, MOST_PASSES, ascent_reach, spread
from ofmu.testing import tiny_language_task, tiny_llama
from ofmu.testing.runs import SINGLE_PROCESS
from ofmu.vectors.optimizers import ShardOptimizer, first_step_


class Power(nn.Module):
    """The loss a·‖θ‖^p, whose gradient points along θ. So the way up is known in closed form."""

    def __init__(self, size: float, power: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((100,), size / 10))
        self.power = power

    def forward(self) -> torch.Tensor:
        return self.theta.norm() ** self.power


class PowerLoss:
    def size(self, row: int) -> int:
        return 1

    def tokens(self, row: int) -> int:
        return 1

    def total(self, module, rows, device):
        return module() * len(rows)

    def row_means(self, module, rows, device):
        return module().expand(len(rows))


def engine_of(module: nn.Module) -> TorchEngine:
    return TorchEngine(module, CostTracker())


@pytest.mark.parametrize("size", [1e-2, 1.0, 40.0])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_the_reach_is_the_length_of_the_closed_form(size, power):
    engine = engine_of(Power(size, power))
    found = ascent_reach(engine, PowerLoss(), [0, 1], "normalized", 3.0)
    wanted = (size**power + 3.0) ** (1 / power) - size
    assert found == pytest.approx(wanted, rel=0.12)


def test_a_step_of_any_rule_at_the_reach_raises_the_loss_by_as_much():
    task = tiny_language_task()
    for rule in ("sgd", "normalized", "adamw"):
        engine = build_engine(tiny_llama(), SINGLE_PROCESS, CostTracker())
        rows = task.forget_rows[:4]
        reach = ascent_reach(engine, task.loss, rows, rule, 0.5)
        values = []
        for _ in range(2):
            values.append(engine.row_values(lambda *given: [*task.loss.row_means(*given)], rows, 0))
            ShardOptimizer(engine.space, rule, reach, ascend=True).step(engine.gradient(task.loss, rows)[1])
        assert sum(values[1]) / 4 - sum(values[0]) / 4 == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize("rule", ["sgd", "normalized", "adamw", "adamw_8bit"])
def test_the_first_step_is_the_one_of_the_optimizer(rule):
    torch.manual_seed(0)
    engine = engine_of(Power(1.0, 2.0))
    before = engine.space.snapshot()
    vector = [torch.randn_like(part) * 1e-3 for part in before]
    ShardOptimizer(engine.space, rule, 0.01, ascend=True).step(vector)
    moved = [new - old for new, old in zip(engine.space.masters(), before, strict=True)]
    first_step_(rule, vector, engine.space.norm(vector))
    for one, other in zip(moved, vector, strict=True):
        torch.testing.assert_close(one, 0.01 * other, rtol=1e-3, atol=1e-7)


def test_the_parameters_keep_their_bits_and_the_cost_is_counted():
    task, tracker = tiny_language_task(), CostTracker()
    engine = build_engine(tiny_llama(), SINGLE_PROCESS, tracker)
    before = engine.space.snapshot()
    ascent_reach(engine, task.loss, task.forget_rows[:4], "adamw", 3.0)
    assert all(torch.equal(one, other) for one, other in zip(before, engine.space.masters(), strict=True))
    assert tracker.gradient_evaluations == 1
    assert FEWEST_PASSES <= tracker.forward_evaluations <= MOST_PASSES


def test_a_loss_that_nothing_raises_is_one_sentence():
    engine = engine_of(Power(0.0, 2.0))
    with pytest.raises(ConfigError, match=r"set method\.inner_lr"):
        ascent_reach(engine, PowerLoss(), [0], "normalized", 3.0)


class Bounded(Power):
    def forward(self) -> torch.Tensor:
        return torch.tanh(self.theta.norm())


def test_a_loss_with_a_bound_below_the_rise_is_one_sentence():
    engine = engine_of(Bounded(1.0, 1.0))
    with pytest.raises(ConfigError, match="3 nats"):
        ascent_reach(engine, PowerLoss(), [0], "normalized", 3.0)
    assert engine.cost_tracker.forward_evaluations <= MOST_PASSES


class Cliff(Power):
    def forward(self) -> torch.Tensor:
        norm = self.theta.norm()
        return torch.where(norm > 1.5, torch.full_like(norm, math.nan), norm)


def test_where_the_loss_breaks_the_rate_stays_below():
    engine = engine_of(Cliff(1.0, 1.0))
    assert ascent_reach(engine, PowerLoss(), [0], "normalized", 3.0) <= 0.5


def test_rows_are_spread_over_the_set():
    assert spread(range(100), 4) == [0, 25, 50, 75]
    assert spread(range(3), 4) == [0, 1, 2]
