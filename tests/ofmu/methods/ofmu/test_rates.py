"""The learning rates that OFMU finds, on losses whose way up is known in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.io.progress import reporting_to
from ofmu.methods.ofmu.config import OfmuConfig
from ofmu.methods.ofmu.rates import Rates, find_rates


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.full((4,), 0.5))

    def forward(self) -> Tensor:
        return self.x


class Slope:
    """A loss of slope 2 for forget rows and 8 for retain rows along the all-ones direction, in four dimensions."""

    def size(self, row: str) -> int:
        return 1

    def tokens(self, row: str) -> int:
        return 1

    def total(self, module: Callable[..., Any], rows: Sequence[str], device: torch.device) -> Tensor:
        return self.row_means(module, rows, device).sum()

    def row_means(self, module: Callable[..., Any], rows: Sequence[str], device: torch.device) -> Tensor:
        slopes = torch.tensor([2.0 if row == "forget" else 8.0 for row in rows])
        return slopes * module().sum() / 2


def rates_of(**settings: Any) -> tuple[Rates, CostTracker]:
    tracker = CostTracker()
    config = OfmuConfig(**{"outer_steps": 10, "inner_steps": 3, "batch_size": 4, **settings})
    engine = TorchEngine(Point(), tracker)
    return find_rates(engine, config, Slope(), ["forget"] * 9, ["retain"] * 9), tracker


def test_given_rates_cost_nothing_and_are_scaled():
    rates, tracker = rates_of(inner_lr=0.5, outer_lr=0.1, inner_lr_scale=2.0, outer_lr_scale=0.5)
    assert (rates.inner, rates.outer) == (1.0, 0.05)
    assert (tracker.gradient_evaluations, tracker.forward_evaluations) == (0, 0)


def test_the_inner_steps_together_lead_twice_as_far_as_the_margin():
    # Along the unit vector of the gradient, a forget row's loss rises by 2 per unit of length: δ = 3 is 1.5 away.
    rates, tracker = rates_of(inner_update="normalized", forget_margin=3.0, outer_lr=0.1)
    assert rates.inner == pytest.approx(2 * 1.5 / 30, rel=1e-4)
    assert tracker.gradient_evaluations == 1
    wider, _ = rates_of(inner_update="normalized", forget_margin=6.0, outer_lr=0.1, inner_steps=1)
    assert wider.inner == pytest.approx(2 * 3.0 / 10, rel=1e-4)


def test_a_step_of_adamw_moves_every_coordinate_by_the_rate():
    # A forget row's loss rises by 1 per unit of each of the four coordinates: at the rate .75 by δ = 3.
    rates, tracker = rates_of(forget_margin=3.0, outer_lr=0.1)
    assert rates.inner == pytest.approx(2 * 0.75 / 30, rel=1e-4)
    assert tracker.gradient_evaluations == 1


def test_plain_gradient_steps_are_shorter_since_gradients_grow():
    # ‖∇‖² is 4 for forget rows and 64 for retain rows: at the rates 3/4 and 3/64 the losses rise by 3 nats.
    rates, _ = rates_of(inner_update="sgd", outer_update="sgd", forget_margin=None)
    assert rates.inner == pytest.approx(0.01 * 0.75 / 30, rel=1e-4)
    assert rates.outer == pytest.approx(0.01 * 3 / 64, rel=1e-4)


def test_a_run_without_inner_steps_needs_no_inner_rate():
    rates, tracker = rates_of(inner_steps=0, outer_lr=0.1)
    assert rates.inner == 0
    assert (tracker.gradient_evaluations, tracker.forward_evaluations) == (0, 0)


def test_without_a_margin_the_way_ends_after_three_nats():
    rates, _ = rates_of(inner_update="normalized", forget_margin=None, outer_lr=0.1)
    assert rates.inner == pytest.approx(2 * 1.5 / 30, rel=1e-4)


def test_the_outer_rate_is_a_tenth_of_the_step_that_costs_three_nats():
    # AdamW's first step with rate η moves every weight by η, which raises a retain row's loss by 16 η.
    rates, _ = rates_of(inner_lr=0.1, outer_lr_scale=2.0)
    assert rates.outer == pytest.approx(2 * 0.1 * 3 / 16, rel=1e-4)


def test_rates_do_not_depend_on_the_seed_of_the_minibatches():
    one, _ = rates_of(seed=1)
    other, _ = rates_of(seed=2)
    assert one == other


@pytest.mark.parametrize(
    ("settings", "share", "steps", "scale"),
    [
        ({"outer_steps": 3, "inner_steps": 1}, "67%", 8, "0.37"),
        ({"outer_steps": 30, "inner_steps": 2, "inner_lr_scale": 10.0}, "33%", 40, "7.5"),
    ],
)
def test_a_step_that_covers_much_of_the_way_is_cautioned_with_the_fix(settings, share, steps, scale) -> None:
    (sentence,) = OfmuConfig(**settings).cautions()
    assert sentence.startswith(f"Each inner step covers {share} of the straight way to the forget margin")
    assert sentence.endswith(f"set method.outer_steps to {steps} or more, or method.inner_lr_scale to {scale} or less")
    # Each of the two fixes is enough, and a little less is not.
    assert OfmuConfig(**{**settings, "outer_steps": steps}).cautions() == []
    assert OfmuConfig(**{**settings, "outer_steps": steps - 1}).cautions()
    assert OfmuConfig(**{**settings, "inner_lr_scale": float(scale)}).cautions() == []
    assert OfmuConfig(**{**settings, "inner_lr_scale": float(scale) + 0.01}).cautions()


def test_only_rates_of_range_tests_under_rules_of_fixed_length_are_cautioned() -> None:
    short = {"outer_steps": 1, "inner_steps": 1}
    assert OfmuConfig(**short).cautions()
    for known in ({"inner_lr": 0.1}, {"inner_update": "sgd"}, {"inner_steps": 0}, {"outer_steps": 0}):
        assert OfmuConfig(**{**short, **known}).cautions() == []
    assert OfmuConfig().cautions() == []


def test_the_caution_has_the_share_that_the_range_test_gives() -> None:
    # The straight way is 1.5 long, as above.
    rates, _ = rates_of(inner_update="normalized", outer_lr=0.1, outer_steps=3, inner_steps=1)
    assert rates.inner == pytest.approx(2 / 3 * 1.5, rel=1e-4)
    (sentence,) = OfmuConfig(inner_update="normalized", outer_steps=3, inner_steps=1).cautions()
    assert "covers 67% of the straight way" in sentence


def test_range_tests_are_announced_before_they_run() -> None:
    said: list[Any] = []
    with reporting_to(said.append):
        rates_of(inner_lr=0.5, outer_lr=0.1)
        assert said == []
        rates_of(outer_lr=0.1)
        rates_of()
    assert [each.text.partition(" by range tests")[0] for each in said] == [
        "Setting inner_lr",
        "Setting inner_lr and outer_lr",
    ]
