"""Whole weights for the length of an exact product, where ZeRO-3 shards them.

ZeRO-3 gathers a module's weights for its forward pass and again for its backward pass. A double backward, or a backward
pass through forward mode, needs them once more, and DeepSpeed does not know when. So a product runs on a twin of the
model, which shares no weight with it and has none of DeepSpeed's hooks. The twin gets whole weights when a product
begins, and loses them when the product ends.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ofmu.vectors.base import Segment, Vector, VectorSpace, by_parameter


class WholeWeights:
    """The twin of a model.

    Args:
        model: the model, before DeepSpeed attaches its hooks.
    """

    def __init__(self, model: nn.Module) -> None:
        empty = {
            id(parameter): nn.Parameter(torch.empty(0, device="meta"), requires_grad=parameter.requires_grad)
            for parameter in model.parameters()
        }
        self._twin = copy.deepcopy(model, dict(empty))
        self._places = {
            name: [
                (module, attribute)
                for module in self._twin.modules()
                for attribute, held in module._parameters.items()
                if held is empty[id(parameter)]
            ]
            for name, parameter in model.named_parameters()
        }
        self._segments: dict[str, list[Segment]] = {}

    @contextmanager
    def gathered(self, model: nn.Module, space: VectorSpace) -> Iterator[nn.Module]:
        """Yield the twin with the weights of ``model``, on every rank; collective.

        Args:
            model: the model, whose weights DeepSpeed has sharded.
            space: the space of its trainable parameters.
        """
        import deepspeed

        if not self._segments:
            self._segments = by_parameter(space.segments())
        # ZeRO-3 replaces this function by one without a forward mode.
        linear = nn.functional.linear
        nn.functional.linear = torch._C._nn.linear
        try:
            for name, parameter in model.named_parameters():
                with deepspeed.zero.GatheredParameters([parameter]):
                    whole = nn.Parameter(parameter.data.clone(), requires_grad=parameter.requires_grad)
                self._put(name, whole)
            yield self._twin
        finally:
            nn.functional.linear = linear
            for name, parameter in model.named_parameters():
                empty = torch.empty(0, device="meta")
                self._put(name, nn.Parameter(empty, requires_grad=parameter.requires_grad))

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        for module, attribute in self._places[name]:
            module._parameters[attribute] = parameter

    @torch.no_grad()
    def add_gradient(self, into: Vector, scale: float) -> None:
        """Add ``scale`` times the mean over ranks of the twin's gradients to this rank's part of a vector; collective.

        The gradients are discarded. One of them at a time is in memory in fp32.
        """
        world_size = dist.get_world_size()
        for name, parameter in self._twin.named_parameters():
            if not parameter.requires_grad:
                continue
            # A parameter without a gradient on this rank may have one on another.
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = None
            whole: Tensor = gradient.to(into[0].dtype).flatten()
            if world_size > 1:
                dist.all_reduce(whole)
            for segment in self._segments.get(name, ()):
                piece = whole[segment.start : segment.start + segment.length].to(into[segment.tensor].device)
                into[segment.tensor].narrow(0, segment.offset, segment.length).add_(piece, alpha=scale / world_size)
