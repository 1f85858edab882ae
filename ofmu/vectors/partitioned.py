"""Vectors in DeepSpeed's layout: each rank holds flat fp32 partitions (ZeRO stages 1 to 3).

Only this file and ``ofmu/engine/deepspeed.py`` use DeepSpeed's internals (0.19.x).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ofmu.vectors.base import Segment, Vector, VectorSpace, by_parameter

_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
"""The integer type of the same size as a vector's type."""


class PartitionedSpace(VectorSpace):
    """The base of stages 1 to 3. A vector is a list of flat fp32 partitions, one per optimizer group.

    Args:
        optimizer: DeepSpeed's ZeRO optimizer.
        module: the model.
        offloaded: whether the masters and the gradient shards are in host memory.
    """

    replicated = False

    def __init__(self, optimizer: Any, module: nn.Module, *, offloaded: bool) -> None:
        self._optimizer = optimizer
        self._offloaded = offloaded
        self._shapes = {name: _full_shape(p) for name, p in module.named_parameters() if p.requires_grad}
        self._name_of = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
        self._rank = dist.get_rank()

    @abstractmethod
    def _gradient_pieces(self, group: int) -> list[Tensor]:
        """Return the averaged gradient of one group as consecutive flat pieces."""

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
        # DeepSpeed overwrites only the gradients that the next loss has. A parameter that the next loss does not depend
        # on would keep the gradient of the last loss.
        if self._offloaded:
            for master in self._offloaded_masters():
                if master.grad is not None:
                    master.grad.zero_()

    @abstractmethod
    def _offloaded_masters(self) -> list[Tensor]:
        """Return the masters to whose ``grad`` DeepSpeed writes offloaded gradients."""

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shapes of the whole parameters."""
        return dict(self._shapes)

    def gather_each(self, vector: Vector) -> Iterator[tuple[str, Tensor]]:
        """Yield the whole parameters one after the other. A rank holds one of them besides its partition."""
        segments = by_parameter(self.segments())
        for name, shape in self._shapes.items():
            # No variable here keeps a parameter alive while the next one is gathered.
            yield name, _gathered(vector, segments[name], shape)


@torch.no_grad()
def _gathered(vector: Vector, segments: Sequence[Segment], shape: torch.Size) -> Tensor:
    """Return a whole parameter on every rank. ``segments`` are the rank's segments of the parameter."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    whole = torch.zeros(shape.numel(), dtype=vector[0].dtype, device=device)
    for segment in segments:
        piece = vector[segment.tensor].narrow(0, segment.offset, segment.length)
        whole.narrow(0, segment.start, segment.length).copy_(piece)
    # One rank holds the element, and the other ranks hold 0. So the sum of the bits is the element. A sum of
    # floating-point numbers would lose the sign of -0.
    dist.all_reduce(whole.view(_BITS[whole.dtype]))
    return whole.view(shape)


class Zero12Space(PartitionedSpace):
    """ZeRO stages 1 and 2: the flattened parameters of an optimizer group are cut into one partition per rank."""

    def __init__(self, optimizer: Any, module: nn.Module, *, offloaded: bool) -> None:
        super().__init__(optimizer, module, offloaded=offloaded)
        if not offloaded:
            self._share_storage()

    def _share_storage(self) -> None:
        """Let fp32 masters be the rank's part of fp32 weights. DeepSpeed makes a copy, which only bf16 weights need."""
        optimizer = self._optimizer
        for weights, master, parameters in zip(
            optimizer.parallel_partitioned_bit16_groups,
            optimizer.single_partition_of_fp32_groups,
            optimizer.bit16_groups,
            strict=True,
        ):
            if weights[self._rank].dtype != master.dtype:
                continue
            master.data = weights[self._rank]
            for parameter in parameters:
                mapping = parameter._hp_mapping
                if mapping is not None:
                    # The map from a weight to its master still holds a part of the copy, and so the whole copy.
                    address = mapping.hp_fragment_address
                    mapping.hp_fragment = master.data.narrow(0, address.start, address.numel)

    def masters(self) -> Vector:
        """Return this rank's fp32 partitions, one per optimizer group."""
        return [p.detach() for p in self._optimizer.single_partition_of_fp32_groups]

    def sync_model(self) -> None:
        """Copy the masters to the weights of the model, and gather the parts of all ranks."""
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

    @torch.no_grad()
    def add_gradient(self, into: Vector, scale: float) -> None:
        """Add ``scale`` times the partition of the averaged gradient, and free the gradient."""
        super().add_gradient(into, scale)
        if not self._offloaded:
            for group in range(len(into)):
                self._optimizer.averaged_gradients[group] = None

    def _offloaded_masters(self) -> list[Tensor]:
        return list(self._optimizer.single_partition_of_fp32_groups)

    def _gradient_pieces(self, group: int) -> list[Tensor]:
        optimizer = self._optimizer
        if self._offloaded:
            return [optimizer.single_partition_of_fp32_groups[group].grad]
        flat = optimizer._get_preflattened_grad_partition(group)
        return [flat] if flat is not None else list(optimizer.averaged_gradients[group])

    def segments(self) -> list[Segment]:
        """Return the part of each parameter that falls into this rank's partition of the flattened group."""
        segments = []
        optimizer = self._optimizer
        for group, parameters in enumerate(optimizer.round_robin_bit16_groups):
            size = int(optimizer.partition_size[group])
            low, high = self._rank * size, (self._rank + 1) * size
            offsets = optimizer.round_robin_bit16_offsets[group]
            for parameter, begin in zip(parameters, offsets, strict=True):
                first, last = max(begin, low), min(begin + parameter.numel(), high)
                if first < last:
                    name = self._name_of[id(parameter)]
                    segments.append(Segment(name, first - begin, last - first, group, first - low))
        return segments


class Zero3Space(PartitionedSpace):
    """ZeRO stage 3: every parameter is cut into one piece per rank. The pieces of a sub-group form one flat tensor."""

    def __init__(self, optimizer: Any, module: nn.Module, *, offloaded: bool) -> None:
        super().__init__(optimizer, module, offloaded=offloaded)
        self._clear_padding()

    @torch.no_grad()
    def _clear_padding(self) -> None:
        """Set the padding behind the last rank's pieces to 0. DeepSpeed leaves it uninitialised, and ‖θ‖ reads it."""
        pieces = self.segments()
        for tensor, master in enumerate(self.masters()):
            end = 0
            for piece in sorted((piece for piece in pieces if piece.tensor == tensor), key=lambda piece: piece.offset):
                master[end : piece.offset].zero_()
                end = piece.offset + piece.length
            master[end:].zero_()

    def masters(self) -> Vector:
        """Return this rank's fp32 partitions, one per sub-group."""
        return [p.detach() for p in self._optimizer.fp32_partitioned_groups_flat]

    def sync_model(self) -> None:
        """Copy the masters to the partitions that a forward pass gathers, and to the small parameters kept in full."""
        optimizer = self._optimizer
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if dist.get_backend() == "nccl":
            # DeepSpeed gathers partitions on a stream of its own, which does not wait for the copies above.
            torch.cuda.current_stream().synchronize()
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        optimizer.invalidate_secondary_tensor()

    def clear_gradient(self) -> None:
        """Reset the accumulation and DeepSpeed's micro-step counter.

        ``engine.zero_grad`` would not reset the counter. The buffers are set to 0, since DeepSpeed overwrites only the
        buffers of parameters that the next loss depends on.
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
        """Return this rank's piece of each parameter, without the padding of the last rank."""
        segments = []
        for group, parameters in enumerate(self._optimizer.fp16_groups):
            offset = 0
            for parameter in parameters:
                piece = parameter.partition_numel()
                start = self._rank * piece
                length = max(0, min(piece, parameter.ds_numel - start))
                if length:
                    segments.append(Segment(self._name_of[id(parameter)], start, length, group, offset))
                offset += piece
        return segments


def _full_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of the whole parameter. At stage 3, ``parameter.shape`` is empty."""
    return getattr(parameter, "ds_shape", parameter.shape)
