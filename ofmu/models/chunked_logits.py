"""Cross-entropies of next tokens without whole logits: the output layer runs on a part of the vocabulary at a time.

Logits of n tokens and V words take 4·n·V bytes in fp32, and a plain loss holds three to four tensors of this size. With
128k words and 4,000 tokens these are 2 GB each. Here a pass forms ``CHUNK_BYTES`` of logits at a time. The backward
pass forms them again, so a step costs one more product with the output layer.

PyTorch 2.13 has ``linear_cross_entropy``, which cuts the tokens instead. It then adds up the gradient of the whole
output layer chunk after chunk, and takes labels only, where divergences need distributions. Here each part of this
gradient is written once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers import PreTrainedModel

from ofmu.errors import ModelError
from ofmu.models.meta import build_meta_model
from ofmu.vectors.direct import replaced_forward, sink_of

CHUNK_BYTES = 64 * 2**20
"""Bytes of logits that are formed at a time. A batch whose logits take no more is computed as a whole."""

_WHOLE: ContextVar[bool] = ContextVar("whole_logits", default=False)


@contextmanager
def whole_logits() -> Iterator[None]:
    """Let passes inside the block form whole logits: second derivatives and forward mode need them."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


def layer_for_chunks(module: Any, tokens: int) -> nn.Linear | None:
    """Return the output layer if the logits of a batch are to be formed in chunks, else None.

    They are if they take more than ``CHUNK_BYTES``, the model returns what a plain linear layer gives, and the call is
    not inside :func:`whole_logits`.

    Args:
        module: a causal language model, or an engine's wrapper of it.
        tokens: tokens of the batch, padding included.
    """
    if _WHOLE.get() or not isinstance(module, nn.Module):
        return None
    model = next((part for part in module.modules() if isinstance(part, PreTrainedModel)), None)
    layer: Any = model.get_output_embeddings() if model is not None else None
    # Adapters and quantised layers compute something else than the product.
    if model is None or type(layer) is not nn.Linear:
        return None
    itemsize = max(4, next(model.parameters()).element_size())
    if itemsize * tokens * layer.out_features <= CHUNK_BYTES:
        return None
    config = json.dumps(model.config.to_dict(), sort_keys=True, default=str)
    return layer if _returns_its_output_layer(config, _name(model)) else None


@lru_cache(maxsize=16)
def _returns_its_output_layer(config: str, model_class: str) -> bool:
    """Return whether the logits of a model are the very output of its output layer.

    Some architectures scale or cap their logits afterwards. One block of the model runs without weights and shows it.
    """
    # A mode that counts tensors must not count these.
    with _disable_current_modes(), torch.no_grad():
        try:
            model: Any = build_meta_model(json.loads(config), 1, attention="eager")
        except ModelError:
            return False
        if _name(model) != model_class:
            return False
        given = torch.zeros((1, 2, 1), device="meta")
        ids = torch.zeros((1, 2), dtype=torch.long, device="meta")
        try:
            layer = model.get_output_embeddings()
            with _NoValues(), replaced_forward(layer, lambda hidden: given):  # type: ignore[no-untyped-call]
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError, IndexError):
            # Some models do not run without values: their logits are formed as a whole.
            return False
        return same_storage(logits, given)


def _name(model: Any) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


class _NoValues(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type its modes
    """Answers 0 where a model reads the value of a tensor that has none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return 0 if func is torch.ops.aten._local_scalar_dense.default else func(*args, **(kwargs or {}))


def same_storage(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors are the same values in memory. A detached tensor shares them."""
    return bool(left.untyped_storage()._cdata == right.untyped_storage()._cdata)


@dataclass(frozen=True)
class ChunkedLogits:
    """Logits of some tokens, which are not formed yet. Their cross-entropies have gradients, but no second ones."""

    hidden: Tensor
    """The output layer's inputs, shape (tokens, width)."""
    layer: nn.Linear

    def nll(self, labels: Tensor) -> Tensor:
        """Return −log p(label) of each token in nats, at least in fp32. Labels and result have the shape (tokens,)."""
        return self._apply(_Labels(labels))

    def cross_entropy(self, target_logits: Sequence[Tensor], lowered: tuple[Tensor, float] | None = None) -> Tensor:
        """Return −Σ_v q(v) log p(v) of each token in nats, q = softmax(target logits) without gradient.

        Args:
            target_logits: finite logits of consecutive tokens, shape (some tokens, vocabulary) each.
            lowered: the label of each token, and what is subtracted from the target's logit of this label.
        """
        return self._apply(_Distributions(target_logits, lowered))

    def divergence(self, target_logits: Sequence[Tensor]) -> Tensor:
        """Return Σ_v q(v) (log q(v) − log p(v)) of each token in nats, q as in :meth:`cross_entropy`."""
        return self._apply(_Distributions(target_logits, None, divergence=True))

    def whole(self) -> Tensor:
        """Return all logits, shape (tokens, vocabulary), at least in fp32."""
        logits = nn.functional.linear(self.hidden, self.layer.weight, self.layer.bias)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _apply(self, target: _Labels | _Distributions) -> Tensor:
        losses: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            self.hidden, self.layer.weight, self.layer.bias, target
        )
        return losses


class _Labels:
    """Targets q that are 1 at a label."""

    entropy = 0.0
    """The norm that a divergence subtracts, see :class:`_Distributions`."""

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels

    def expected(self, logits: Tensor, start: int) -> Tensor:
        """Return Σ q·z over the words of a part, shape (tokens, 1)."""
        column, inside = self._column(start, logits.shape[1])
        return torch.where(inside, logits.gather(1, column), 0.0)

    def subtract(self, values: Tensor, start: int, amount: float = 1.0) -> None:
        """Subtract ``amount``·q from the values of a part, shape (tokens, words)."""
        column, inside = self._column(start, values.shape[1])
        values.scatter_(1, column, values.gather(1, column) - amount * inside.to(values.dtype))

    def _column(self, start: int, width: int) -> tuple[Tensor, Tensor]:
        """Return a valid column of each label in a part, and whether the label is in this part."""
        column = (self._labels - start).unsqueeze(1)
        return column.clamp(0, width - 1), (column >= 0) & (column < width)


class _Distributions:
    """Targets q = softmax(t) for given logits t. A part of t is copied at a time."""

    def __init__(
        self, logits: Sequence[Tensor], lowered: tuple[Tensor, float] | None, *, divergence: bool = False
    ) -> None:
        self._logits, self._lowered, self._divergence = logits, lowered, divergence
        width = chunk_width(sum(map(len, logits)), max(4, logits[0].element_size()))
        parts = [self._part(start, width).logsumexp(1, keepdim=True) for start in range(0, logits[0].shape[1], width)]
        self._norm = torch.cat(parts, 1).logsumexp(1, keepdim=True)
        self.entropy = self._norm if divergence else 0.0

    def expected(self, logits: Tensor, start: int) -> Tensor:
        """Return Σ q·z over the words of a part, shape (tokens, 1), or Σ q·(z − t) for a divergence."""
        target = self._part(start, logits.shape[1])
        values = logits - target if self._divergence else logits
        return target.sub_(self._norm).exp_().mul_(values).sum(1, keepdim=True).to(logits.dtype)

    def subtract(self, probabilities: Tensor, start: int) -> None:
        """Subtract q from the probabilities of a part."""
        probabilities.sub_(self._part(start, probabilities.shape[1]).sub_(self._norm).exp_())

    def _part(self, start: int, width: int) -> Tensor:
        part = torch.cat([logits[:, start : start + width] for logits in self._logits])
        part = part if part.dtype == torch.float64 else part.float()
        if self._lowered is not None:
            labels, amount = self._lowered
            _Labels(labels).subtract(part, start, amount)
        return part


def chunk_width(length: int, itemsize: int) -> int:
    """Return how many columns of this length are formed at a time: words for all tokens, or tokens with all words."""
    return max(1, CHUNK_BYTES // (max(1, length) * itemsize))


class _CrossEntropy(torch.autograd.Function):
    """log Σ exp z − Σ_v q(v) z(v) of a target q, and its gradient p − q, for z = hidden·weightᵀ + bias."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: _Labels | _Distributions
    ) -> Tensor:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        largest = torch.full((len(hidden), 1), -torch.inf, dtype=dtype, device=hidden.device)
        total, expected = torch.zeros_like(largest), torch.zeros_like(largest)
        for start, logits in _chunks(hidden, weight, bias, dtype):
            expected += target.expected(logits, start)
            higher = torch.maximum(largest, logits.amax(1, keepdim=True))
            total = total * (largest - higher).exp() + logits.sub_(higher).exp_().sum(1, keepdim=True)
            largest = higher
            del logits  # else this part would stand while the next one is formed
        norm = largest + total.log()
        ctx.save_for_backward(hidden, weight, bias, norm)
        ctx.target, ctx.sink = target, sink_of(weight)
        return (norm - target.entropy - expected).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # With create_graph=True, PyTorch would take these gradients for constants.
            raise RuntimeError("a second derivative needs whole logits: compute the loss inside whole_logits()")
        hidden, weight, bias, norm = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        factor = gradients[0].unsqueeze(1)
        of_hidden = torch.zeros(hidden.shape, dtype=norm.dtype, device=hidden.device) if needs_hidden else None
        sink = ctx.sink if needs_weight else None
        of_weight = torch.empty_like(weight) if needs_weight and sink is None else None
        of_bias = torch.empty_like(bias) if needs_bias else None
        for start, logits in _chunks(hidden, weight, bias, norm.dtype):
            words = slice(start, start + logits.shape[1])
            logits.sub_(norm).exp_()
            ctx.target.subtract(logits, start)
            slope = logits.mul_(factor)
            if of_bias is not None:
                of_bias[words] = slope.sum(0)
            slope = slope.to(hidden.dtype)
            if sink is not None:
                for rows in sink.parts(words.start, words.stop):
                    sink.add(rows, slope[:, rows.start - start : rows.stop - start].t() @ hidden)
            if of_weight is not None:
                torch.matmul(slope.t(), hidden, out=of_weight[words])
            if of_hidden is not None:
                of_hidden += slope @ weight[words]
            del logits, slope
        return (None if of_hidden is None else of_hidden.to(hidden.dtype)), of_weight, of_bias, None


def _chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """Yield the first word and the logits of each part of the vocabulary. The caller may overwrite them."""
    width = chunk_width(len(hidden), dtype.itemsize)
    for start in range(0, len(weight), width):
        words = slice(start, start + width)
        part = nn.functional.linear(hidden, weight[words], None if bias is None else bias[words]).to(dtype)
        yield start, part
        del part
