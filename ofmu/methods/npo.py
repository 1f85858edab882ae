"""Negative preference optimisation: ascent that fades as the model leaves the start model behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ofmu.config import PositiveFloat
from ofmu.data.rows import Example
from ofmu.losses import answer_nll
from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.descent import DESCENT_SPACE, Descent, DescentConfig
from ofmu.methods.start_model import StartModel


class NpoConfig(DescentConfig):
    """NPO's settings."""

    name: Literal["npo"] = "npo"
    beta: PositiveFloat = 0.1
    """b, the inverse temperature; towards 0 NPO becomes gradient ascent."""


class NpoLoss:
    """−(2/b) log σ(b (nll − nll_ref)), averaged over rows; nll is summed over a row's answer tokens."""

    def __init__(self, beta: float, reference: Mapping[int, float], pad_id: int) -> None:
        self._beta, self._reference, self._pad_id = beta, reference, pad_id

    def size(self, row: Example) -> int:
        """Return 1: the mean is over rows."""
        return 1

    def tokens(self, row: Example) -> int:
        """Return the number of tokens of prompt and answer."""
        return len(row.input_ids)

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the rows' summed loss."""
        nll = answer_nll(module, rows, self._pad_id, device)
        reference = torch.tensor([self._reference[id(row)] for row in rows], dtype=nll.dtype, device=device)
        return -(2 / self._beta) * functional.logsigmoid(self._beta * (nll - reference)).sum()


@register("npo")
class NPO(Descent[Example]):
    """L = γ L_NPO + α L_r; the start model's losses are computed once, before the first step."""

    Settings = NpoConfig
    title = "NPO"
    source = "Zhang et al., arXiv 2404.05868, equation 3"
    tasks = frozenset({"language"})
    space: ClassVar = DESCENT_SPACE | {"beta": {"low": 0.03, "high": 1.0, "log": True}}
    published: ClassVar = {"beta": 0.1, "forget_weight": 1.0, "retain_weight": 1.0}
    settings: NpoConfig

    def __init__(self, context: Context[Example], settings: NpoConfig) -> None:
        super().__init__(context, settings)
        pad_id = context.task.loss.pad_id  # type: ignore[attr-defined]
        start = StartModel(self.engine, self.task.loss)
        rows = self.forget_rows()
        nll = start.row_values(lambda module, part, device: [*answer_nll(module, part, pad_id, device)], rows)
        self._loss = NpoLoss(settings.beta, nll, pad_id)

    def forget_loss(self, rows: Sequence[Example]) -> NpoLoss:
        """Return the NPO loss."""
        return self._loss
