"""Gradients of large weights that are added to a vector part by part, so that no whole gradient is ever in memory.

A backward pass makes the gradient of a weight as a whole before the gradient can be added to a vector. The embeddings
and the output layer are the largest weights of a language model. Where they share one weight, autograd even holds two
such gradients at the end of a pass. Here the backward passes of the layers form a part of the gradient at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ofmu.vectors.base import add_scaled_

PART = 2**20
"""Elements of a gradient that are formed at a time. A weight with fewer elements takes the ordinary way."""


@dataclass(frozen=True)
class GradientSink:
    """Where the gradient of a weight goes: ``target`` += ``scale`` · gradient."""

    target: Tensor
    """Has the shape of the weight."""
    scale: float

    def add(self, rows: slice, gradient: Tensor) -> None:
        """Add the gradient of some rows of the weight."""
        add_scaled_(self.target[rows], gradient, self.scale)

    def parts(self, start: int = 0, stop: int | None = None) -> Iterator[slice]:
        """Yield slices that cover the rows from ``start`` to ``stop``: of at most :data:`PART` elements, or one row."""
        rows, end = max(1, PART // self.target.shape[1]), len(self.target) if stop is None else stop
        for first in range(start, end, rows):
            yield slice(first, min(first + rows, end))


_SINKS: ContextVar[Mapping[int, GradientSink] | None] = ContextVar("gradient_sinks", default=None)


def sink_of(weight: Tensor) -> GradientSink | None:
    """Return where a backward pass must add the gradient of ``weight`` itself. None: autograd takes the gradient.

    Ask in a forward pass: on a GPU, a backward pass runs in another thread.
    """
    sinks = _SINKS.get()
    return None if sinks is None else sinks.get(id(weight))


def takes_sink(weight: Tensor) -> bool:
    """Return whether a weight is so large that its gradient is formed in parts."""
    return weight.dim() == 2 and weight.numel() >= PART


@contextmanager
def direct_gradients(module: nn.Module, sinks: Mapping[int, GradientSink]) -> Iterator[None]:
    """Let embeddings and linear layers inside the block add the gradients of their weights to the sinks.

    Second derivatives of these layers are refused inside the block. Uses of a weight outside of these layers give
    ordinary gradients, which the caller adds.

    Args:
        module: the model.
        sinks: the sinks by the ``id`` of the weight.
    """
    token = _SINKS.set(sinks)
    try:
        with ExitStack() as stack:
            for part in module.modules():
                compute = _direct_forward(part, sinks)
                if compute is not None:
                    stack.enter_context(replaced_forward(part, compute))
            yield
    finally:
        _SINKS.reset(token)


@contextmanager
def replaced_forward(layer: nn.Module, compute: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let ``layer`` return ``compute(input)`` inside the block. Hooks of the layer still run; blocks may be nested."""
    before = layer.__dict__.get("forward")
    layer.forward = compute
    try:
        yield
    finally:
        if before is None:
            del layer.forward
        else:
            layer.forward = before


def _direct_forward(layer: nn.Module, sinks: Mapping[int, GradientSink]) -> Callable[[Tensor], Tensor] | None:
    """Return the forward pass of a layer whose weight has a sink, else None."""
    # A subclass may compute something else.
    if type(layer) is nn.Linear and (sink := sinks.get(id(layer.weight))) is not None:
        linear, to_linear = layer, sink
        return lambda x: _apply(_Linear, x, linear.weight, linear.bias, to_linear)
    if type(layer) is nn.Embedding and (sink := sinks.get(id(layer.weight))) is not None:
        plain = layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
        embedding, to_embedding = layer, sink
        return (lambda ids: _apply(_Embedding, ids, embedding, embedding.weight, to_embedding)) if plain else None
    return None


def _apply(function: Any, *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


class _Linear(torch.autograd.Function):
    """x·Wᵀ + b. The gradient of W goes to a sink."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sink: GradientSink) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sink = sink
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (gradient,) = ctx.saved_tensors, gradients
        slopes = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[1]:
            inputs = x.reshape(-1, x.shape[-1])
            for rows in ctx.sink.parts():
                ctx.sink.add(rows, slopes[:, rows].t() @ inputs)
        of_input = (slopes @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        return of_input, None, slopes.sum(0) if ctx.needs_input_grad[2] else None, None


class _Embedding(torch.autograd.Function):
    """The rows of W that the ids name. The gradient of W goes to a sink."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, layer: nn.Embedding, weight: Tensor, sink: GradientSink) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.sink, ctx.padding = sink, layer.padding_idx
        return functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None]:
        (ids,) = ctx.saved_tensors
        for rows in ctx.sink.parts():
            length = rows.stop - rows.start
            # The kernel leaves out the padding index: here one past the part, for all ids outside of the part.
            inside = (ids >= rows.start) & (ids < rows.stop)
            if ctx.padding is not None:
                inside &= ids != ctx.padding
            local = torch.where(inside, ids - rows.start, length)
            part = torch.ops.aten.embedding_dense_backward(gradients[0], local, length + 1, length, False)
            ctx.sink.add(rows, part[:length])
        return None, None, None, None
