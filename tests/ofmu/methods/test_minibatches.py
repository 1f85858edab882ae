"""The minibatches of whole runs, as a loss sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from method_specs import short_spec
from ofmu.data.rows import Example
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.losses import AnswerLoss
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.testing import tiny_language_task, tiny_llama
from ofmu.testing.language import PAD_ID


class RecordingLoss(AnswerLoss):
    """The loss of answers, which keeps the lengths of the rows of every pass."""

    def __init__(self) -> None:
        super().__init__(PAD_ID)
        self.passes: list[list[int]] = []

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        self.passes.append([len(row.input_ids) for row in rows])
        return super().total(module, rows, device)

    def row_means(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        self.passes.append([len(row.input_ids) for row in rows])
        return super().row_means(module, rows, device)


def lengths_of_passes(name: str, **settings: Any) -> list[list[int]]:
    task = tiny_language_task()
    task.loss = RecordingLoss()
    engine = TorchEngine(tiny_llama(), CostTracker())
    method = build_method(Context(engine, task, seed=5), short_spec(name, batch_size=4, **settings).method)
    list(method.rounds())
    assert len(task.loss.passes) >= 4
    return task.loss.passes


@pytest.mark.parametrize("name", ["ofmu", "graddiff"])
def test_rows_of_similar_length_share_a_minibatch(name: str) -> None:
    def padding(passes: list[list[int]]) -> float:
        return 1 - sum(map(sum, passes)) / sum(len(rows) * max(rows) for rows in passes)

    settings: dict[str, Any] = {"steps": 12} if name == "graddiff" else {}
    drawn = lengths_of_passes(name, **settings)
    grouped = lengths_of_passes(name, group_by_length=True, **settings)
    assert padding(drawn) > 0.2
    assert padding(grouped) < 0.1
    assert {len(rows) for rows in drawn} == {4}
    assert {len(rows) for rows in grouped} <= {3, 4}, "30 rows make minibatches of 4 and of 3"
