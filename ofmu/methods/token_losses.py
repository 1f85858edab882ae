"""What methods on answers share: losses per token and per row, and the divergence from the start model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ofmu.data.collate import IGNORE_INDEX
from ofmu.data.rows import Example
from ofmu.losses import AnswerLoss, Loss, answer_logits, answer_nll
from ofmu.methods.base import Context
from ofmu.methods.frozen_target import FrozenTarget
from ofmu.methods.single_loop import SingleLoopConfig, SingleLoopMethod


class TokenLossConfig(SingleLoopConfig):
    """What the methods of one loop on answers share."""

    retain_loss: Literal["nll", "kl"] = "nll"
    """``nll``: of the retain answers; ``kl``: KL(start model ‖ model) at their tokens, one forward pass more a step."""

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that a run under these will ignore."""
        notes = super().ineffective()
        if self.retain_loss == "kl" and self.retain_weight == 0:
            notes.append("method.retain_loss has no effect: method.retain_weight is 0")
        return notes


class TokenLoss(AnswerLoss):
    """A loss that has one value per answer token, averaged over those of the global minibatch."""

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the sum over the rows' answer tokens, EOS included."""
        logits, labels = answer_logits(module, rows, self.pad_id, device)
        counted = labels != IGNORE_INDEX
        return self.per_token(logits[counted], labels[counted], rows).sum()

    @abstractmethod
    def per_token(self, logits: Tensor, labels: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the tokens' losses.

        ``logits`` has shape (answer tokens, vocabulary) and ``labels`` (answer tokens,), one row's behind another's.
        """


class RowLoss(AnswerLoss):
    """A loss that has one value per row, averaged over those of the global minibatch."""

    def size(self, row: Example) -> int:
        """Return 1: the mean is over rows."""
        return 1

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the rows' summed loss."""
        return self.per_row(answer_nll(module, rows, self.pad_id, device), rows).sum()

    @abstractmethod
    def per_row(self, nll: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the rows' losses, made of their summed NLL; both have shape (rows,)."""


class DivergenceLoss(TokenLoss):
    """KL(π_0 ‖ π) = Σ_v π_0(v) (log π_0(v) − log π(v)), averaged over answer tokens and no others."""

    def __init__(self, pad_id: int, start: Mapping[int, Tensor]) -> None:
        super().__init__(pad_id)
        self._start = start

    def per_token(self, logits: Tensor, labels: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the tokens' divergences in nats."""
        start = stacked(self._start, rows, logits).log_softmax(-1)
        return functional.kl_div(logits.log_softmax(-1), start, log_target=True, reduction="none").sum(-1)


def stacked(per_row: Mapping[int, Tensor], rows: Sequence[Example], like: Tensor) -> Tensor:
    """Return what is known of the rows, by ``id(row)``, one behind another, in the dtype of ``like`` and beside it."""
    return torch.cat([per_row[id(row)] for row in rows]).to(like)


def as_tensor(values: Mapping[int, float], rows: Sequence[Example], like: Tensor) -> Tensor:
    """Return the rows' values, by ``id(row)``, as a tensor of shape (rows,)."""
    return torch.tensor([values[id(row)] for row in rows], dtype=like.dtype, device=like.device)


class TokenLossMethod(SingleLoopMethod[Example]):
    """A method of one loop whose losses read the answers' tokens, with a choice of the retain loss."""

    tasks = frozenset({"language"})
    compares: ClassVar[bool] = False
    """Whether :meth:`forget_loss` reads the start model's logits, so that θ_0 is kept whatever the retain loss."""
    settings: TokenLossConfig

    def __init__(self, context: Context[Example], settings: TokenLossConfig) -> None:
        super().__init__(context, settings)
        self.pad_id: int = context.task.loss.pad_id  # type: ignore[attr-defined]
        diverges = settings.retain_loss == "kl" and settings.retain_weight > 0
        self._start = FrozenTarget(self.engine, self.task.loss) if self.compares or diverges else None

    def retain_loss(self, rows: Sequence[Example]) -> Loss[Example]:
        """Return the retain answers' NLL, or their divergence from what the start model answers; collective."""
        if self.settings.retain_loss == "kl":
            return DivergenceLoss(self.pad_id, self.start_logits(rows))
        return self.task.loss

    def start_logits(self, rows: Sequence[Example]) -> dict[int, Tensor]:
        """Return the start model's logits at the answer tokens of this rank's rows, by ``id(row)``; collective.

        One forward pass at θ_0. Each tensor has the shape (answer tokens, vocabulary).
        """
        assert self._start is not None

        def logits_of(module: Callable[..., Any], part: Sequence[Example], device: torch.device) -> list[Tensor]:
            logits, labels = answer_logits(module, part, self.pad_id, device)
            return [*torch.split(logits[labels != IGNORE_INDEX], [row.answer_length for row in part])]

        return self._start.outputs(logits_of, rows)

    def nll_now(self, rows: Sequence[Example]) -> dict[int, float]:
        """Return the rows' summed NLL in nats, by ``id(row)``, on every rank; collective.

        It is of the current parameters: the start model's where a constructor asks.
        """
        tokens = sum(len(row.input_ids) for row in rows)
        values = self.engine.row_values(
            lambda module, part, device: [*answer_nll(module, part, self.pad_id, device)], rows, tokens
        )
        return dict(zip(map(id, rows), values, strict=True))
