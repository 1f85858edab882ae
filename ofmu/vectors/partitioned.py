"""Vectors as DeepSpeed keeps them: each rank holds its own flat fp32 partitions (ZeRO stages 1 to 3).

This file and ``ofmu/engine`` are the only readers of DeepSpeed's insides (0.19.x).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ofmu.vectors.base import Segment, Vector, VectorSpace


class PartitionedSpace(VectorSpace):
    """What stages 1 to 3 share: vectors are lists of flat fp32 partitions, one per optimizer group."""

    replicated = False

    def __init__(self, optimizer: Any, module: nn.Module, *, offloaded: bool) -> None:
        self._optimizer = optimizer
        self._offloaded = offloaded
        self._shapes = {name: _true_shape(p) for name, p in module.named_parameters() if p.requires_grad}
        self._name_of = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
        self._rank = dist.get_rank()

    @abstractmethod
    def _gradient_pieces(self, group: int) -> list[Tensor]:
        """Return the averaged gradient of one group as flat pieces that lie one behind the other."""

    @torch.no_grad()
    def add_gradient(self, into: Vector, scale: float) -> None:
        """Add ``scale`` times the partition of the averaged gradient."""
        for group, target in enumerate(into):
            offset = 0
            for piece in self._gradient_pieces(group):
                length = min(piece.numel(), target.numel() - offset)
                part = target.narrow(0, offset, length)
                part.add_(piece.reshape(-1)[:length].to(part), alpha=scale)
                offset += length

    def _clear_offloaded(self) -> None:
        # DeepSpeed writes only where a gradient arrived: a parameter that the next loss does not reach would keep
        # the last loss's
        if self._offloaded:
            for master in self._offloaded_masters():
                if master.grad is not None:
                    master.grad.zero_()

    @abstractmethod
    def _offloaded_masters(self) -> list[Tensor]:
        """Return the masters on which DeepSpeed leaves offloaded gradients."""

    @torch.no_grad()
    def gather(self, vector: Vector) -> dict[str, Tensor]:
        """Return the full vector on every rank; costs one whole vector of memory."""
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        full = {
            name: torch.zeros(shape.numel(), dtype=vector[0].dtype, device=device)
            for name, shape in self._shapes.items()
        }
        for segment in self.segments():
            piece = vector[segment.tensor].narrow(0, segment.offset, segment.length)
            full[segment.parameter].narrow(0, segment.start, segment.length).copy_(piece)
        for name, tensor in full.items():
            # every element is held by exactly one rank and zero elsewhere, so the sum is the element
            dist.all_reduce(tensor)
            full[name] = tensor.view(self._shapes[name])
        return full


class Zero12Space(PartitionedSpace):
    """ZeRO stages 1 and 2: each optimizer group's flattened parameters are cut into one piece per rank."""

    def masters(self) -> Vector:
        """Return this rank's fp32 partitions, one per optimizer group."""
        return [p.detach() for p in self._optimizer.single_partition_of_fp32_groups]

    def sync_model(self) -> None:
        """Copy masters into the model's weights and gather every rank's part."""
        self._optimizer.update_lp_params()
        for group in range(len(self._optimizer.bit16_groups)):
            self._optimizer._update_model_bit16_weights(group)

    def clear_gradient(self) -> None:
        """Reset the gradient buffers and the micro-step counter that decides between copy and add."""
        optimizer = self._optimizer
        optimizer.zero_grad()
        for group in range(len(optimizer.bit16_groups)):
            optimizer.averaged_gradients[group] = None
            optimizer.all_grad_tensors[group] = None
        optimizer.micro_step_id = -1
        self._clear_offloaded()

    def _offloaded_masters(self) -> list[Tensor]:
        return list(self._optimizer.single_partition_of_fp32_groups)

    def _gradient_pieces(self, group: int) -> list[Tensor]:
        optimizer = self._optimizer
        if self._offloaded:
            return [optimizer.single_partition_of_fp32_groups[group].grad]
        flat = optimizer._get_preflattened_grad_partition(group)
        return [flat] if flat is not None else list(optimizer.averaged_gradients[group])

    def segments(self) -> list[Segment]:
        """Return the overlap of each parameter's place in the flattened group with this rank's partition."""
        found = []
        optimizer = self._optimizer
        for group, parameters in enumerate(optimizer.round_robin_bit16_groups):
            size = int(optimizer.partition_size[group])
            low, high = self._rank * size, (self._rank + 1) * size
            offsets = optimizer.round_robin_bit16_offsets[group]
            for parameter, begin in zip(parameters, offsets, strict=True):
                first, last = max(begin, low), min(begin + parameter.numel(), high)
                if first < last:
                    name = self._name_of[id(parameter)]
                    found.append(Segment(name, first - begin, last - first, group, first - low))
        return found


class Zero3Space(PartitionedSpace):
    """ZeRO stage 3: every parameter is cut into one piece per rank; a sub-group's pieces lie side by side."""

    def __init__(self, optimizer: Any, module: nn.Module, *, offloaded: bool) -> None:
        super().__init__(optimizer, module, offloaded=offloaded)
        self._clear_padding()

    @torch.no_grad()
    def _clear_padding(self) -> None:
        """Zero what lies behind the last rank's pieces: DeepSpeed leaves there what memory held, and ‖θ‖ reads it."""
        masters = self.masters()
        padding = [torch.ones_like(master, dtype=torch.bool) for master in masters]
        for segment in self.segments():
            padding[segment.tensor].narrow(0, segment.offset, segment.length).fill_(False)
        for master, behind in zip(masters, padding, strict=True):
            master.masked_fill_(behind, 0.0)

    def masters(self) -> Vector:
        """Return this rank's fp32 partitions, one per sub-group."""
        return [p.detach() for p in self._optimizer.fp32_partitioned_groups_flat]

    def sync_model(self) -> None:
        """Copy masters into the partitions that the forward pass gathers from, small resident ones included."""
        optimizer = self._optimizer
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        optimizer.invalidate_secondary_tensor()

    def clear_gradient(self) -> None:
        """Reset the accumulation; ``engine.zero_grad`` alone would leave DeepSpeed's micro-step counter.

        The buffers are cleared too: DeepSpeed overwrites only those of parameters that the next loss reaches.
        """
        self._optimizer.zero_grad()
        self._optimizer.grad_partitions_flat_buffer.zero_()
        self._clear_offloaded()

    def _offloaded_masters(self) -> list[Tensor]:
        return list(self._optimizer.fp32_partitioned_groups_flat)

    def _gradient_pieces(self, group: int) -> list[Tensor]:
        if self._offloaded:
            return [self._optimizer.fp32_partitioned_groups_flat[group].grad]
        return list(self._optimizer.averaged_gradients[group])

    def segments(self) -> list[Segment]:
        """Return this rank's piece of each parameter, without the padding of the last rank's."""
        found = []
        for group, parameters in enumerate(self._optimizer.fp16_groups):
            offset = 0
            for parameter in parameters:
                piece = parameter.partition_numel()
                start = self._rank * piece
                length = max(0, min(piece, parameter.ds_numel - start))
                if length:
                    found.append(Segment(self._name_of[id(parameter)], start, length, group, offset))
                offset += piece
        return found


def _true_shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)
