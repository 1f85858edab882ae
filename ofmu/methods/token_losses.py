"""The shared parts of methods on text: losses per token and per row, and the divergence from the target."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ofmu.data.collate import IGNORE_INDEX
from ofmu.data.rows import Example
from ofmu.engine.base import Engine
from ofmu.losses import (
    AnswerLoss,
    AnswerTokenMean,
    Loss,
    answer_logits,
    answer_nll,
    answer_values,
    padded_tokens,
)
from ofmu.methods.base import Context
from ofmu.methods.frozen_target import KEPT_VECTORS, VECTORS_IN_OUTPUTS, FrozenTarget
from ofmu.methods.single_loop import SingleLoopConfig, SingleLoopMethod
from ofmu.models.chunked_logits import ChunkedLogits, layer_for_chunks
from ofmu.task import Task
from ofmu.vectors.held import HeldVectors, Passes


class TextTask(Task[Example], Protocol):
    """The part of a language task that methods on text use."""

    @property
    def loss(self) -> AnswerLoss:
        """L_f and L_r: the token-mean negative log-likelihood of the answer."""

    def refusals(self) -> list[Example]:
        """Return one row per forget row: the question of the forget row, and a refusal as the answer."""

    def alternates(self, engine: Engine) -> list[Example]:
        """Return one row per forget row: its question, and a plausible answer with other facts; collective.

        The engine holds the target, which writes the alternates that the data does not give.
        """


class TokenLossConfig(SingleLoopConfig):
    """The settings that the methods on text with one loop share."""

    retain_loss: Literal["nll", "kl"] = "nll"
    """L_retain. ``nll``: the NLL of the retain answers. ``kl``: KL(target ‖ model) at the tokens of the retain answers,
    which costs one further forward pass per step."""

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that has no effect."""
        notes = super().ineffective()
        if self.retain_loss == "kl" and self.retain_weight == 0:
            notes.append("method.retain_loss has no effect: method.retain_weight is 0")
        return notes


class TokenLoss(AnswerTokenMean):
    """A loss with one value per answer token, averaged over the answer tokens of the global minibatch."""

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the sum over the answer tokens of the rows, EOS included."""
        layer = layer_for_chunks(module, padded_tokens(rows)) if self._in_chunks() else None
        if layer is not None:

            def values(logits: ChunkedLogits, labels: Tensor) -> Tensor:
                return self.per_chunked_token(logits, labels, rows)

            return answer_values(module, layer, rows, self.pad_id, device, values).sum()
        logits, labels = answer_logits(module, rows, self.pad_id, device)
        is_answer = labels != IGNORE_INDEX
        return self.per_token(logits[is_answer], labels[is_answer], rows).sum()

    @abstractmethod
    def per_token(self, logits: Tensor, labels: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the losses of the answer tokens.

        Args:
            logits: shape (answer tokens, vocabulary). The tokens of one row follow those of the row before.
            labels: shape (answer tokens,).
            rows: the rows of the tokens.
        """

    def per_chunked_token(self, logits: ChunkedLogits, labels: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the losses of :meth:`per_token` from logits of a large vocabulary, which never stand as a whole.

        A class that does not define this method beside its :meth:`per_token` always gets whole logits.
        """
        raise NotImplementedError

    def _in_chunks(self) -> bool:
        # A subclass that changes only per_token must not get the chunked losses of its base class.
        definer = next(base for base in type(self).__mro__ if "per_token" in vars(base))
        return definer is not TokenLoss and "per_chunked_token" in vars(definer)


class RowLoss(AnswerTokenMean):
    """A loss with one value per row, averaged over the rows of the global minibatch."""

    def size(self, row: Example) -> int:
        """Return 1, since the mean is over rows."""
        return 1

    def total(self, module: Callable[..., Any], rows: Sequence[Example], device: torch.device) -> Tensor:
        """Return the summed loss of the rows."""
        return self.per_row(answer_nll(module, rows, self.pad_id, device), rows).sum()

    @abstractmethod
    def per_row(self, nll: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the losses of the rows, from the summed NLL of the answers. Both have the shape (rows,)."""


class DivergenceLoss(TokenLoss):
    """KL(π_0 ‖ π) = Σ_v π_0(v) (log π_0(v) − log π(v)) in nats, averaged over answer tokens.

    Args:
        pad_id: the padding token.
        target_logits: the target's logits at the answer tokens, by ``id(row)``.
    """

    def __init__(self, pad_id: int, target_logits: Mapping[int, Tensor]) -> None:
        super().__init__(pad_id)
        self._target_logits = target_logits

    def per_token(self, logits: Tensor, labels: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the divergences of the answer tokens in nats."""
        target = concatenate_rows(self._target_logits, rows, logits).log_softmax(-1)
        return functional.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="none").sum(-1)

    def per_chunked_token(self, logits: ChunkedLogits, labels: Tensor, rows: Sequence[Example]) -> Tensor:
        """Return the divergences of the answer tokens in nats."""
        return logits.divergence([self._target_logits[id(row)] for row in rows])


def preference_losses(margins: Tensor, beta: float) -> Tensor:
    """Return −(2/b) log σ(b·margin) for each margin. NPO and SimNPO differ only in the margin of a row."""
    return -(2 / beta) * functional.logsigmoid(beta * margins)


def concatenate_rows(per_row: Mapping[int, Tensor], rows: Sequence[Example], like: Tensor) -> Tensor:
    """Return the tensors of the rows, found by ``id(row)``, concatenated. Dtype and device are those of ``like``."""
    return torch.cat([per_row[id(row)] for row in rows]).to(like)


def row_tensor(values: Mapping[int, float], rows: Sequence[Example], like: Tensor) -> Tensor:
    """Return the values of the rows, found by ``id(row)``: shape (rows,). Dtype and device are those of ``like``."""
    return torch.tensor([values[id(row)] for row in rows], dtype=like.dtype, device=like.device)


def answer_nll_per_row(engine: Engine, rows: Sequence[Example], pad_id: int, batch_size: int) -> list[float]:
    """Return the summed NLL of each answer in nats at the current parameters, on every rank; collective.

    The rows are read in minibatches of ``batch_size``, as in a step. One pass over all rows may exceed the memory.
    """
    found: list[float] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        tokens = sum(len(row.input_ids) for row in batch)
        found += engine.row_values(
            lambda module, own, device: [*answer_nll(module, own, pad_id, device)], batch, tokens
        )
    return found


class TokenLossMethod(SingleLoopMethod[Example]):
    """A method on text with one loop. The config chooses the retain loss."""

    tasks = frozenset({"language"})
    needs_target_logits: ClassVar[bool] = False
    """Whether :meth:`forget_loss` uses the target's logits. θ_0 is then kept in memory whatever the retain loss."""
    answers_measured_first: ClassVar[int] = 0
    """Answers to each forget row whose NLL under the target the constructor computes."""
    config: TokenLossConfig
    task: TextTask

    @classmethod
    def _uses_divergence(cls, config: TokenLossConfig) -> bool:
        return config.retain_loss == "kl" and config.retain_weight > 0

    @classmethod
    def keeps_target_logits(cls, config: TokenLossConfig) -> bool:
        """Return whether a loss compares with the target's logits."""
        return cls.needs_target_logits or cls._uses_divergence(config)

    @classmethod
    def held_vectors(cls, config: Any) -> HeldVectors:
        """Return the vectors of one loop, and θ_0 if a loss compares with the target."""
        held = super().held_vectors(config)
        if not cls.keeps_target_logits(config):
            return held
        # The target runs while the direction of the step is alive.
        between = max(held.between, 1 + VECTORS_IN_OUTPUTS)
        return replace(held.with_kept(KEPT_VECTORS), between=between, exact_between=VECTORS_IN_OUTPUTS)

    @classmethod
    def passes(cls, config: Any, forget_rows: int, retain_rows: int) -> tuple[Passes, Passes]:
        """Return the passes of one loop, and the target's. What the target writes before the first step does not count.

        Whether the target writes anything depends on the rows.
        """
        least, most = super().passes(config, forget_rows, retain_rows)
        first = Passes(forget_forward=math.ceil(cls.answers_measured_first * forget_rows / config.batch_size))
        least, most = least + first, most + first
        forget = config.steps if cls.needs_target_logits and config.forget_weight > 0 else 0
        retain = Passes(retain_forward=config.steps if cls._uses_divergence(config) else 0)
        # The target does not run on the forget rows of a step that the stop has ended.
        always = Passes(forget_forward=0 if config.has_forget_stop else forget)
        return least + always + retain, most + Passes(forget_forward=forget) + retain

    def __init__(self, context: Context[Example], config: TokenLossConfig) -> None:
        super().__init__(context, config)
        self.pad_id = self.task.loss.pad_id
        self._target = FrozenTarget(self.engine, self.task.loss) if self.keeps_target_logits(config) else None

    def retain_loss(self, rows: Sequence[Example]) -> Loss[Example]:
        """Return the NLL of the retain answers, or their divergence from the target; collective."""
        if self.config.retain_loss == "kl":
            return DivergenceLoss(self.pad_id, self.target_logits(rows))
        return self.task.loss

    def target_logits(self, rows: Sequence[Example]) -> dict[int, Tensor]:
        """Return the target's logits at the answer tokens of this rank's rows, by ``id(row)``; collective.

        Each tensor has the shape (answer tokens, vocabulary). The call costs one forward pass.
        """
        assert self._target is not None

        def logits_of(module: Callable[..., Any], batch: Sequence[Example], device: torch.device) -> list[Tensor]:
            layer = layer_for_chunks(module, padded_tokens(batch))
            if layer is None:
                logits, labels = answer_logits(module, batch, self.pad_id, device)
                logits = logits[labels != IGNORE_INDEX]
            else:  # logits of the answers only
                logits = answer_values(module, layer, batch, self.pad_id, device, lambda logits, _: logits.whole())
            return [*torch.split(logits, [row.answer_length for row in batch])]

        return self._target.outputs(logits_of, rows)

    def nll_by_row(self, rows: Sequence[Example]) -> dict[int, float]:
        """Return the summed NLL of each answer in nats at the current parameters, by ``id(row)``; collective.

        In a constructor, the current parameters are those of the target.
        """
        found = answer_nll_per_row(self.engine, rows, self.pad_id, self.config.batch_size)
        return dict(zip(map(id, rows), found, strict=True))
