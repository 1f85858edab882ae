"""Whole vectors: the one process, or every rank at ZeRO stage 0, holds all elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ofmu.vectors.base import Segment, Vector, VectorSpace, add_scaled_, flat_length
from ofmu.vectors.direct import GradientSink, direct_gradients, takes_sink


class ReplicatedSpace(VectorSpace):
    """The space of the trainable parameters of a module.

    The constructor moves the parameters into one flat tensor and makes each parameter a view of this tensor. So a
    displacement is one fused addition, and the model needs no synchronisation.

    Args:
        module: the model.
        accumulates_in_place: True: backward passes may add to a vector directly. DeepSpeed sums gradients over ranks
            where they are, so its passes must not.

    Raises:
        ValueError: the module has no trainable parameter, or trainable parameters of several dtypes.
    """

    replicated = True

    def __init__(self, module: nn.Module, *, accumulates_in_place: bool = False) -> None:
        self.accumulates_in_place = accumulates_in_place
        self._module = module
        self._named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        parameters = [parameter for _, parameter in self._named]
        if len({p.dtype for p in parameters}) != 1:
            raise ValueError("the module needs trainable parameters of one dtype")
        self._store(parameters)

    def _store(self, parameters: list[nn.Parameter]) -> None:
        """Move the parameters to where the space stores them."""
        self._flat = torch.empty(flat_length(parameters), dtype=parameters[0].dtype, device=parameters[0].device)
        for parameter, view in zip(parameters, self._views(self._flat), strict=True):
            view.copy_(parameter.data)
            parameter.data = view

    def _views(self, flat: Tensor) -> list[Tensor]:
        lengths = [parameter.numel() for _, parameter in self._named]
        pieces = torch.split(flat, lengths)
        return [piece.view(p.shape) for piece, (_, p) in zip(pieces, self._named, strict=True)]

    def masters(self) -> Vector:
        """Return the flat tensor, of which the parameters are views."""
        return [self._flat]

    def sync_model(self) -> None:
        """Do nothing, since the parameters are views of the masters."""

    def clear_gradient(self) -> None:
        """Discard the gradient of every parameter."""
        for _, parameter in self._named:
            parameter.grad = None

    @torch.no_grad()
    def add_gradient(self, into: Vector, scale: float) -> None:
        """Add ``scale`` times the gradients. A parameter that the loss does not depend on has no gradient."""
        views, gradients = [], []
        for view, (_, parameter) in zip(self._views(into[0]), self._named, strict=True):
            if parameter.grad is not None:
                views.append(view)
                gradients.append(parameter.grad)
        if views:
            self.add(views, gradients, scale)

    @contextmanager
    def accumulating_in(self, target: Vector, scale: float, *, first_order: bool = True) -> Iterator[None]:
        """Let the backward passes inside the block add ``scale`` times their gradients to ``target``.

        With ``first_order``, the gradients of large embeddings and linear layers are never formed as a whole.
        """

        def adding_to(view: Tensor) -> Callable[[Tensor], None]:
            def add(parameter: Tensor) -> None:
                if parameter.grad is not None:
                    add_scaled_(view, parameter.grad, scale)
                    parameter.grad = None

            return add

        pairs = [(view, p) for view, (_, p) in zip(self._views(target[0]), self._named, strict=True)]
        handles = [
            parameter.register_post_accumulate_grad_hook(adding_to(view))  # type: ignore[no-untyped-call]
            for view, parameter in pairs
        ]
        sinks = {id(p): GradientSink(view, scale) for view, p in pairs if first_order and takes_sink(p)}
        try:
            with direct_gradients(self._module, sinks):
                yield
        finally:
            for handle in handles:
                handle.remove()
            self.clear_gradient()

    def segments(self) -> list[Segment]:
        """Return one segment per parameter."""
        segments, offset = [], 0
        for name, parameter in self._named:
            segments.append(Segment(name, 0, parameter.numel(), 0, offset))
            offset += parameter.numel()
        return segments

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of the parameters."""
        return {name: parameter.shape for name, parameter in self._named}

    def gather_each(self, vector: Vector) -> Iterator[tuple[str, Tensor]]:
        """Yield views of the vector by parameter name, without an exchange between ranks."""
        for (name, _), view in zip(self._named, self._views(vector[0]), strict=True):
            yield name, view
