from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from ofmu.data.rows import Example
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.losses import AnswerLoss, padded_tokens
from ofmu.testing import tiny_llama, tiny_rows


class CountingLoss(AnswerLoss):
    """Counts the tokens that passes read, padding included."""

    read = 0

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> torch.Tensor:
        self.read += padded_tokens(rows)
        return super().total(module, rows, device)


def test_the_loss_is_the_mean_over_answer_tokens_of_all_rows() -> None:
    """Compare with log-softmax, row by row and without padding."""
    model, rows = tiny_llama(), tiny_rows(5, 3)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row.input_ids])
            logp = model(input_ids=ids).logits[0].double().log_softmax(-1)
            for position in range(row.answer_start, len(row.input_ids)):
                total -= float(logp[position - 1, row.input_ids[position]])
                count += 1
    value, _ = TorchEngine(model, CostTracker()).gradient(AnswerLoss(0), rows)
    assert value == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 7])
def test_micro_batches_change_nothing(micro_batch_size: int) -> None:
    rows = tiny_rows(7, 3)
    full = TorchEngine(tiny_llama(), CostTracker())
    split = TorchEngine(tiny_llama(), CostTracker(), micro_batch_size)
    value, gradient = full.gradient(AnswerLoss(0), rows)
    other_value, other = split.gradient(AnswerLoss(0), rows)
    assert other_value == pytest.approx(value, rel=1e-6)
    assert float((other[0] - gradient[0]).norm() / gradient[0].norm()) < 1e-5
    assert full.cost_tracker.gradient_evaluations == split.cost_tracker.gradient_evaluations == 1
    assert full.cost_tracker.tokens == split.cost_tracker.tokens == sum(len(row.input_ids) for row in rows)


def test_micro_batches_have_rows_of_similar_length() -> None:
    """Of the lengths 9, 12, 15, 18, 21, 9, 12, 15 in pairs, neighbours by length need 3 tokens of padding."""
    rows, loss = tiny_rows(8, 3), CountingLoss(0)
    TorchEngine(tiny_llama(), CostTracker(), micro_batch_size=2).gradient(loss, rows)
    lengths = sorted(len(row.input_ids) for row in rows)
    assert lengths == [9, 9, 12, 12, 15, 15, 18, 21]
    assert loss.read == sum(lengths) + 3
