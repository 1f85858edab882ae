"""The engine's contract: gradients and exact products of losses over global minibatches, on any number of ranks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ofmu.engine.cost import CostTracker
from ofmu.errors import NonFiniteLossError
from ofmu.losses import Loss
from ofmu.vectors.base import Vector, VectorSpace, sum_over_ranks

RowT = TypeVar("RowT")

PRODUCT_COST = 2
"""Gradient evaluations of an exact Hessian-vector product: a forward and a double backward pass."""
THIRD_COST = 4
"""Gradient evaluations of an exact third derivative: a forward and a triple backward pass."""


class Engine(ABC):
    """Runs losses forward and backward; knows nothing of the method above it.

    Every rank passes the same global minibatch and takes rows ``rank::world_size`` of it. A loss is summed over
    local rows and divided by the global size, so the result does not depend on how rows fall on ranks.
    """

    space: VectorSpace
    model: nn.Module
    """The bare module, for evaluation and saving."""
    device: torch.device
    rank: int = 0
    world_size: int = 1
    zero_stage: int = 0

    def __init__(self, micro_batch_size: int | None, tracker: CostTracker) -> None:
        self._micro_batch_size = micro_batch_size
        self.cost_tracker = tracker

    @abstractmethod
    def _forward(self) -> Callable[..., Any]:
        """Return the callable that runs the model so that :meth:`_backward` can follow."""

    @abstractmethod
    def _backward(self, scalar: Tensor, *, last: bool) -> None:
        """Add the scalar's gradient to the pending one; ``last`` closes the accumulation over micro-batches."""

    def close(self) -> None:
        """Give back what the engine holds."""
        return None

    def gradient(
        self, loss: Loss[RowT], rows: Sequence[RowT], *, into: Vector | None = None, scale: float = 1.0
    ) -> tuple[float, Vector]:
        """Return the global mean loss and its gradient, or add ``scale`` times the gradient to ``into``.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        forward = self._forward()

        def scalars(batch: Sequence[RowT]) -> tuple[Tensor, Tensor]:
            total = loss.total(forward, batch, self.device)
            return total, total

        value = self._accumulate(loss, rows, scalars, cost=1)
        if not math.isfinite(value):
            raise NonFiniteLossError(f"a loss became {value}")
        return value, self._collect(into, scale)

    @torch.no_grad()
    def outputs(
        self,
        compute: Callable[[Callable[..., Any], Sequence[RowT], torch.device], Sequence[Tensor]],
        rows: Sequence[RowT],
        tokens: int,
    ) -> dict[int, Tensor]:
        """Return what ``compute`` gives for this rank's rows of the global minibatch, by ``id(row)``; no gradients.

        ``compute`` takes the module, rows and device and returns one tensor per row. The rows that :meth:`gradient`
        fills up short ranks with are among the keys. ``tokens`` is what the pass reads, for the tracker.
        """
        self.cost_tracker.count_forward(tokens)
        found: dict[int, Tensor] = {}
        for batch, _ in self._micro_batches(rows):
            results = compute(self.model, batch, self.device)
            found.update((id(row), result) for row, result in zip(batch, results, strict=True))
        return found

    def row_values(
        self,
        compute: Callable[[Callable[..., Any], Sequence[RowT], torch.device], Sequence[Tensor]],
        rows: Sequence[RowT],
        tokens: int,
    ) -> list[float]:
        """Return one number per row, in order and on every rank; ``compute`` gives one scalar tensor per row."""
        local = self.outputs(compute, rows, tokens)
        values = torch.zeros(len(rows), dtype=torch.float64)
        for index in range(self.rank, len(rows), self.world_size):
            values[index] = local[id(rows[index])].double().cpu()
        return [float(value) for value in (sum_over_ranks(values) if self.world_size > 1 else values)]

    def hessian_product(
        self,
        loss: Loss[RowT],
        rows: Sequence[RowT],
        vector: Vector,
        *,
        into: Vector | None = None,
        scale: float = 1.0,
    ) -> Vector:
        """Return ∇²L · vector by double backward, or add ``scale`` times it to ``into``.

        Each rank differentiates <∇L_local, vector>, whose average over ranks is the global product.
        """
        full = self.space.gather(vector)

        def scalars(batch: Sequence[RowT]) -> tuple[Tensor, Tensor]:
            total = loss.total(self.model, batch, self.device)
            return self._slope(total, full), total

        self._accumulate(loss, rows, scalars, cost=PRODUCT_COST)
        return self._collect(into, scale)

    def third_product(
        self,
        loss: Loss[RowT],
        rows: Sequence[RowT],
        first: Vector,
        second: Vector,
        turned: Vector,
        *,
        into: Vector,
        scale: float,
    ) -> None:
        """Add ``scale · (∇³L[first, second] + ∇²L · turned)`` to ``into`` by a triple backward pass.

        This is the derivative along ``second`` of ∇²L · a(θ) where a = ``first`` and its own derivative is
        ``turned``; all three vectors are constants here.
        """
        full_first = self.space.gather(first)
        full_second = self.space.gather(second)
        full_turned = self.space.gather(turned)

        def scalars(batch: Sequence[RowT]) -> tuple[Tensor, Tensor]:
            total = loss.total(self.model, batch, self.device)
            curved = self._slope(self._slope(total, full_first), full_second)
            return curved + self._slope(total, full_turned), total

        self._accumulate(loss, rows, scalars, cost=THIRD_COST)
        self._collect(into, scale)

    def _slope(self, scalar: Tensor, direction: dict[str, Tensor]) -> Tensor:
        """Return <∇scalar, direction>, differentiable once more; a constant scalar has slope zero."""
        if not scalar.requires_grad:
            return scalar.new_zeros(())
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        gradients = torch.autograd.grad(scalar, [p for _, p in named], create_graph=True, allow_unused=True)
        terms = [
            (gradient.to(direction[name].dtype) * direction[name]).sum()
            for (name, _), gradient in zip(named, gradients, strict=True)
            if gradient is not None
        ]
        return torch.stack(terms).sum() if terms else scalar.new_zeros(())

    def _accumulate(
        self,
        loss: Loss[RowT],
        rows: Sequence[RowT],
        scalars: Callable[[Sequence[RowT]], tuple[Tensor, Tensor]],
        *,
        cost: int,
    ) -> float:
        """Run forward and backward over this rank's micro-batches; return the global mean loss."""
        self.cost_tracker.count(cost, sum(loss.tokens(row) for row in rows))
        self.space.clear_gradient()
        denominator = sum(loss.size(row) for row in rows)
        batches = self._micro_batches(rows)
        value = torch.zeros(1, dtype=torch.float64)
        for index, (batch, weight) in enumerate(batches):
            differentiated, total = scalars(batch)
            # the engine averages gradients over ranks; the factor world_size turns that into a sum
            share = weight * self.world_size / denominator
            self._backward_if_reached(differentiated * share, last=index == len(batches) - 1)
            value += weight * total.detach().double().cpu() / denominator
        # a plain engine may live in a process that belongs to a group
        return float(sum_over_ranks(value) if self.world_size > 1 else value)

    def _backward_if_reached(self, scalar: Tensor, *, last: bool) -> None:
        if scalar.requires_grad:
            self._backward(scalar, last=last)
        elif self.world_size > 1:
            raise RuntimeError("a rank's loss does not depend on the parameters, and the others would wait for it")

    def _micro_batches(self, rows: Sequence[RowT]) -> list[tuple[Sequence[RowT], float]]:
        """Cut this rank's rows into as many micro-batches as every other rank has, filling up with weight zero."""
        local = list(rows[self.rank :: self.world_size])
        most = math.ceil(len(rows) / self.world_size)
        size = self._micro_batch_size or most
        batches: list[tuple[Sequence[RowT], float]] = [
            (local[start : start + size], 1.0) for start in range(0, len(local), size)
        ]
        while len(batches) < math.ceil(most / size):
            batches.append((rows[:1], 0.0))
        return batches

    def _collect(self, into: Vector | None, scale: float) -> Vector:
        target = self.space.zeros() if into is None else into
        self.space.add_gradient(target, scale)
        return target
