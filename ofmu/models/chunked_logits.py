"""Cross-entropies of next tokens without whole logits: the output layer runs on a part of the vocabulary at a time.

Logits of n tokens and V words take 4·n·V bytes in fp32, and a plain loss holds three to four tensors of this size. With
128k words and 4,000 tokens these are 2 GB each. Here a pass forms ``CHUNK_BYTES`` of logits at a time. The backward pass
forms them again, so a step costs one more product with the output layer.

PyTorch 2.13 has ``linear_cross_entropy``, which cuts the tokens instead. It then adds up the gradient of the whole output
layer chunk after chunk, and takes labels only, where divergences need distributions. Here each part of this gradient is
written once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from ofmu.errors import ModelError
from ofmu.models.meta import build_meta_model

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
    return layer if _returns_its_output_layer(config, type(model)) else None


@contextmanager
def replaced(layer: nn.Linear, compute: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let ``layer`` return ``compute(hidden states)`` inside the block. Hooks of the layer still run."""
    layer.forward = compute  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward


@lru_cache(maxsize=16)
def _returns_its_output_layer(config: str, model_class: type) -> bool:
    """Return whether the logits of a model are the very output of its output layer.

    Some architectures scale or cap their logits afterwards. One block of the model runs without weights and shows it.
    """
    try:
        model: Any = build_meta_model(json.loads(config), 1, attention="eager")
    except ModelError:
        return False
    if type(model) is not model_class:
        return False
    given = torch.zeros((1, 2, 1), device="meta")
    ids = torch.zeros((1, 2), dtype=torch.long, device="meta")
    try:
        with torch.no_grad(), _NoValues(), replaced(model.get_output_embeddings(), lambda hidden: given):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError, IndexError):
        # Some models do not run without values: their logits are formed as a whole.
        return False
    return same_storage(logits, given)


class _NoValues(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type its modes
    """Answers 0 where a model reads the value of a tensor that has none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return 0 if func is torch.ops.aten._local_scalar_dense.default else func(*args, **(kwargs or {}))


def same_storage(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors are the same values in memory. A detached tensor shares them."""
    return left.shape == right.shape and left.untyped_storage()._cdata == right.untyped_storage()._cdata


@dataclass(frozen=True)
class ChunkedLogits:
    """The logits of some tokens, which no one has formed. Cross-entropies of them have gradients, but no second ones."""

    hidden: Tensor
    """The output layer's inputs, shape (tokens, width)."""
    layer: nn.Linear

    def nll(self, labels: Tensor) -> Tensor:
        """Return −log p(label) of each token in nats, at least in fp32. Labels and result have the shape (tokens,)."""
        return self._cross_entropy(labels)

    def cross_entropy(self, target_logits: Tensor) -> Tensor:
        """Return −Σ_v q(v) log p(v) of each token in nats, q = softmax(``target_logits``) without gradient.

        Args:
            target_logits: shape (tokens, vocabulary). No value is −∞.
        """
        return self._cross_entropy(target_logits)

    def _cross_entropy(self, target: Tensor) -> Tensor:
        losses: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            self.hidden, self.layer.weight, self.layer.bias, target
        )
        return losses


def chunk_width(tokens: int, itemsize: int) -> int:
    """Return the number of words of the vocabulary whose logits are formed at a time."""
    return max(1, CHUNK_BYTES // (max(1, tokens) * itemsize))


class _CrossEntropy(torch.autograd.Function):
    """log Σ exp z − Σ_v q(v) z(v), and its gradient p − q, for z = hidden·weightᵀ + bias.

    ``target`` is labels of shape (tokens,), where q is 1 at the label, or logits of q of shape (tokens, vocabulary).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        target_norm = None if target.dim() == 1 else torch.logsumexp(target, 1, keepdim=True)
        largest = torch.full((len(hidden), 1), -torch.inf, dtype=dtype, device=hidden.device)
        total, expected = torch.zeros_like(largest), torch.zeros_like(largest)
        for start, logits in _chunks(hidden, weight, bias, dtype):
            if target_norm is None:
                index, inside = _label_index(target, start, logits.shape[1])
                expected += torch.where(inside, logits.gather(1, index), 0.0)
            else:
                part = (target[:, start : start + logits.shape[1]] - target_norm).exp_()
                expected += part.mul_(logits).sum(1, keepdim=True)
                del part
            higher = torch.maximum(largest, logits.amax(1, keepdim=True))
            total = total * (largest - higher).exp() + logits.sub_(higher).exp_().sum(1, keepdim=True)
            largest = higher
            del logits  # else this part would stand while the next one is formed
        norm = largest + total.log()
        ctx.save_for_backward(hidden, weight, bias, target, norm, target_norm)
        return (norm - expected).squeeze(1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, norm, target_norm = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        factor = gradients[0].unsqueeze(1)
        of_hidden = torch.zeros(hidden.shape, dtype=norm.dtype, device=hidden.device) if needs_hidden else None
        of_weight = torch.empty_like(weight) if needs_weight else None
        of_bias = torch.empty_like(bias) if needs_bias else None
        for start, logits in _chunks(hidden, weight, bias, norm.dtype):
            words = slice(start, start + logits.shape[1])
            logits.sub_(norm).exp_()
            if target_norm is None:
                index, inside = _label_index(target, start, logits.shape[1])
                logits.scatter_(1, index, logits.gather(1, index) - inside.to(norm.dtype))
            else:
                logits.sub_((target[:, words] - target_norm).exp_())
            slope = logits.mul_(factor)
            if of_bias is not None:
                of_bias[words] = slope.sum(0)
            slope = slope.to(hidden.dtype)
            if of_weight is not None:
                torch.matmul(slope.t(), hidden, out=of_weight[words])
            if of_hidden is not None:
                of_hidden += slope @ weight[words]
            del logits, slope
        return (None if of_hidden is None else of_hidden.to(hidden.dtype)), of_weight, of_bias, None


def _chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[int, Tensor]]:
    """Yield the first word and the logits of each part of the vocabulary. The caller may overwrite them."""
    width = chunk_width(len(hidden), dtype.itemsize)
    for start in range(0, len(weight), width):
        words = slice(start, start + width)
        part = nn.functional.linear(hidden, weight[words], None if bias is None else bias[words]).to(dtype)
        yield start, part
        del part


def _label_index(labels: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Return a valid column of each label in a part of the vocabulary, and whether the label is in this part."""
    column = (labels - start).unsqueeze(1)
    return column.clamp(0, width - 1), (column >= 0) & (column < width)
