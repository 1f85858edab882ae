"""What the target says of all rows before the first step is read in minibatches, as in a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from method_specs import short_spec
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.methods.token_losses import answer_nll_per_row
from ofmu.testing import tiny_language_task, tiny_llama, tiny_rows


def rows_of_passes(model: nn.Module) -> list[int]:
    """Return a list to which every forward pass adds its number of rows."""
    rows: list[int] = []

    def count(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows.append(len(named["input_ids"] if "input_ids" in named else arguments[0]))

    model.register_forward_pre_hook(count, with_kwargs=True)
    return rows


@pytest.mark.parametrize(("name", "passes"), [("npo", 3), ("blur", 3), ("dpo", 5), ("altpo", 5), ("pdu", 6)])
def test_no_pass_before_the_first_step_has_more_rows_than_a_minibatch(name: str, passes: int) -> None:
    """The task has 12 forget rows and 30 retain rows. With answers to prefer there are 24 forget answers."""
    model, tracker = tiny_llama(), CostTracker()
    seen = rows_of_passes(model)
    context = Context(TorchEngine(model, tracker), tiny_language_task(), seed=5)
    build_method(context, short_spec(name, batch_size=5).method)
    assert (max(seen), len(seen)) == (5, passes)
    assert tracker.forward_evaluations == passes


def test_values_in_minibatches_are_those_of_one_pass() -> None:
    model, rows = tiny_llama(), tiny_rows(7, 1)
    engine, tracker = TorchEngine(model, CostTracker()), CostTracker()
    whole = answer_nll_per_row(engine, rows, 0, batch_size=len(rows))
    sliced = answer_nll_per_row(TorchEngine(model, tracker), rows, 0, batch_size=3)
    torch.testing.assert_close(torch.tensor(sliced), torch.tensor(whole), rtol=1e-5, atol=0)
    assert (tracker.forward_evaluations, tracker.tokens) == (3, engine.cost_tracker.tokens)
    assert answer_nll_per_row(engine, [], 0, batch_size=3) == []
