"""The base class of engines: gradients and exact derivatives of losses over global minibatches, on any ranks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ofmu.engine.cost import CostTracker
from ofmu.engine.forward_mode import tangent
from ofmu.errors import NonFiniteLossError
from ofmu.losses import Loss
from ofmu.models.chunked_logits import whole_logits
from ofmu.vectors.base import Vector, VectorSpace, sum_over_ranks

RowT = TypeVar("RowT")

RowFunction: TypeAlias = Callable[[Callable[..., Any], Sequence[RowT], torch.device], Sequence[Tensor]]
"""A function of (module, rows, device) that returns one tensor per row."""

HVP_COST = 2
"""Gradient evaluations of an exact Hessian-vector product: a forward and a double backward pass."""
FORWARD_MODE_HVP_COST = 3
"""Gradient evaluations of a product by reverse over forward: measured 2.5 to 2.7, rounded up."""
HVP_DERIVATIVE_COST = 4
"""Gradient evaluations of the exact derivative of such a product: a triple backward pass, and a product."""


class Engine(ABC):
    """Runs losses forward and backward. An engine knows nothing of methods.

    Every rank passes the same global minibatch and works on the rows ``rank::world_size`` of this minibatch. A loss is
    summed over local rows and divided by the global size. So the result does not depend on which rank has which row.
    """

    space: VectorSpace
    model: nn.Module
    """The module without DeepSpeed's wrapper, for evaluation and saving."""
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
        """Add the gradient of ``scalar`` to the pending gradient. ``last``: no further micro-batch follows."""

    @contextmanager
    def _whole_model(self) -> Iterator[nn.Module]:
        """Yield the module on which exact products run. Its trainable weights are whole; collective."""
        yield self.model

    def close(self) -> None:
        """Free the memory and the process group of the engine."""
        return None

    def gradient(
        self, loss: Loss[RowT], rows: Sequence[RowT], *, into: Vector | None = None, scale: float = 1.0
    ) -> tuple[float, Vector]:
        """Return the global mean loss and ``scale`` times the gradient of the mean loss.

        If ``into`` is given, the scaled gradient is added to ``into``, and ``into`` is returned.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        forward = self._forward()

        def scalars(batch: Sequence[RowT]) -> tuple[Tensor, Tensor]:
            total = loss.total(forward, batch, self.device)
            return total, total

        value, gradient = self._accumulate(loss, rows, scalars, into, scale, cost=1, first_order=True)
        if not math.isfinite(value):
            raise NonFiniteLossError(f"a loss became {value}")
        return value, gradient

    @torch.no_grad()
    def outputs(self, compute: RowFunction[RowT], rows: Sequence[RowT], tokens: int) -> dict[int, Tensor]:
        """Return ``compute`` for this rank's rows of the global minibatch, by ``id(row)``, without gradients.

        The keys include the rows with which :meth:`gradient` fills up ranks that have fewer micro-batches.

        Args:
            compute: returns one tensor per row.
            rows: global minibatch.
            tokens: tokens that the pass reads, for the cost tracker.
        """
        self.cost_tracker.count_forward(tokens)
        outputs: dict[int, Tensor] = {}
        for batch, _ in self._micro_batches(rows):
            results = compute(self.model, batch, self.device)
            outputs.update((id(row), result) for row, result in zip(batch, results, strict=True))
        return outputs

    def row_values(self, compute: RowFunction[RowT], rows: Sequence[RowT], tokens: int) -> list[float]:
        """Return one number per row, in the order of ``rows`` and on every rank; collective.

        Args:
            compute: returns one scalar tensor per row.
            rows: global minibatch.
            tokens: tokens that the pass reads, for the cost tracker.
        """
        local = self.outputs(compute, rows, tokens)
        values = torch.zeros(len(rows), dtype=torch.float64)
        own = range(self.rank, len(rows), self.world_size)
        if own:
            values[self.rank :: self.world_size] = torch.stack([local[id(rows[index])] for index in own]).double().cpu()
        return [float(value) for value in (sum_over_ranks(values) if self.world_size > 1 else values)]

    def hvp(
        self,
        loss: Loss[RowT],
        rows: Sequence[RowT],
        vector: Vector,
        *,
        into: Vector | None = None,
        scale: float = 1.0,
        forward_mode: bool = False,
    ) -> Vector:
        """Return ``scale`` times the Hessian-vector product ∇²L·``vector``.

        Each rank differentiates <∇L_local, ``vector``>. The average of the results over ranks is the global product.

        Args:
            loss: L.
            rows: global minibatch.
            vector: the direction.
            into: the vector to which the scaled product is added, and which is returned. None: a new vector.
            scale: the factor.
            forward_mode: True: reverse over forward, see :mod:`ofmu.engine.forward_mode`. False: double backward.

        Raises:
            ConfigError: ``forward_mode``, and the model has an operation without a forward mode.
        """
        full = self.space.gather(vector)
        with self._whole_model() as model, whole_logits():

            def scalars(batch: Sequence[RowT]) -> tuple[Tensor, Tensor]:
                if forward_mode:
                    return tangent(model, full, lambda module: loss.total(module, batch, self.device))
                total = loss.total(model, batch, self.device)
                return _inner_product(_gradients(model, total), full, total), total

            cost = FORWARD_MODE_HVP_COST if forward_mode else HVP_COST
            return self._accumulate(loss, rows, scalars, into, scale, cost=cost)[1]

    def hvp_derivative(
        self, loss: Loss[RowT], rows: Sequence[RowT], vector: Vector, along: Vector, *, into: Vector, scale: float
    ) -> None:
        """Add ``scale``·∇³L[``vector``, ``along``] to ``into``, by a triple backward pass.

        The sum of this and of ∇²L·u̇ is the derivative of ∇²L·u along ``along``, where u = ``vector`` and u̇ is the
        derivative of u. Both together count as :data:`HVP_DERIVATIVE_COST`.
        """
        full_vector, full_along = (self.space.gather(part) for part in (vector, along))

        with self._whole_model() as model, whole_logits():

            def scalars(batch: Sequence[RowT]) -> tuple[Tensor, Tensor]:
                total = loss.total(model, batch, self.device)
                products = _products(model, _gradients(model, total), full_vector)
                return _inner_product(products, full_along, total), total

            self._accumulate(loss, rows, scalars, into, scale, cost=HVP_DERIVATIVE_COST - HVP_COST)

    def _accumulate(
        self,
        loss: Loss[RowT],
        rows: Sequence[RowT],
        scalars: Callable[[Sequence[RowT]], tuple[Tensor, Tensor]],
        into: Vector | None,
        scale: float,
        *,
        cost: int,
        first_order: bool = False,
    ) -> tuple[float, Vector]:
        """Run forward and backward over this rank's micro-batches. Return the global mean loss and the gradient.

        ``scalars`` returns for a micro-batch the scalar to differentiate, and the summed loss. ``scale`` times the
        gradient is added to ``into``, or to zeros. ``cost`` counts gradient evaluations.
        """
        self.cost_tracker.count(cost, sum(loss.tokens(row) for row in rows))
        return self._collect(lambda: self._run_micro_batches(loss, rows, scalars), into, scale, first_order=first_order)

    def _collect(
        self, passes: Callable[[], float], into: Vector | None, scale: float, *, first_order: bool
    ) -> tuple[float, Vector]:
        """Run the passes, and add ``scale`` times their gradient to ``into``, or to zeros."""
        space = self.space
        space.clear_gradient()
        if not space.accumulates_in_place:
            value = passes()
            target = space.gradient_zeros() if into is None else into
            space.add_gradient(target, scale)
            return value, target
        target = space.gradient_zeros() if into is None else into
        with space.accumulating_in(target, scale, first_order=first_order):
            value = passes()
        return value, target

    def _run_micro_batches(
        self,
        loss: Loss[RowT],
        rows: Sequence[RowT],
        scalars: Callable[[Sequence[RowT]], tuple[Tensor, Tensor]],
    ) -> float:
        """Differentiate the scalar of each micro-batch. Return the global mean loss."""
        denominator = sum(loss.size(row) for row in rows)
        batches = self._micro_batches(rows, loss.tokens)
        # A copy to the host waits for the device, so the value stays there until the last pass.
        value = torch.zeros(1, dtype=torch.float64, device=self.device)
        for index, (batch, weight) in enumerate(batches):
            scalar, total = scalars(batch)
            # Engines average gradients over ranks. The factor world_size turns the average into a sum.
            factor = weight * self.world_size / denominator
            self._backward_if_dependent(scalar * factor, last=index == len(batches) - 1)
            value += weight * total.detach().double() / denominator
        value = value.cpu()
        # The process of a TorchEngine may belong to a group, whose other ranks do not take part in this sum.
        return float(sum_over_ranks(value) if self.world_size > 1 else value)

    def _backward_if_dependent(self, scalar: Tensor, *, last: bool) -> None:
        if scalar.requires_grad:
            self._backward(scalar, last=last)
        elif self.world_size > 1:
            raise RuntimeError("the loss of a rank does not depend on the parameters, so the other ranks would hang")

    def _micro_batches(
        self, rows: Sequence[RowT], tokens: Callable[[RowT], int] | None = None
    ) -> list[tuple[Sequence[RowT], float]]:
        """Return this rank's micro-batches with their weights. Every rank gets the same number of micro-batches.

        A rank with fewer rows than another gets micro-batches of weight 0, since backward passes are collective.
        Several micro-batches have rows of similar length each, which need little padding, if ``tokens`` gives lengths.
        """
        local = list(rows[self.rank :: self.world_size])
        longest = math.ceil(len(rows) / self.world_size)
        size = self._micro_batch_size or longest
        if tokens is not None and size < longest:
            local.sort(key=tokens)
        batches: list[tuple[Sequence[RowT], float]] = [
            (local[start : start + size], 1.0) for start in range(0, len(local), size)
        ]
        while len(batches) < math.ceil(longest / size):
            batches.append((rows[:1], 0.0))
        return batches


def _gradients(model: nn.Module, scalar: Tensor) -> dict[str, Tensor]:
    """Return ∇scalar by parameter, which can be differentiated again. Parameters without an effect are left out."""
    if not scalar.requires_grad:
        return {}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(scalar, [p for _, p in named], create_graph=True, allow_unused=True)
    return {name: gradient for (name, _), gradient in zip(named, found, strict=True) if gradient is not None}


def _products(model: nn.Module, gradients: dict[str, Tensor], direction: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return H·direction by parameter, which can be differentiated again, for gradients whose derivative is H."""
    varying = {name: gradient for name, gradient in gradients.items() if gradient.requires_grad}
    if not varying:
        return {}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(
        list(varying.values()),
        [p for _, p in named],
        [direction[name].to(gradient.dtype) for name, gradient in varying.items()],
        create_graph=True,
        allow_unused=True,
    )
    return {name: product for (name, _), product in zip(named, found, strict=True) if product is not None}


def _inner_product(gradients: dict[str, Tensor], direction: dict[str, Tensor], like: Tensor) -> Tensor:
    """Return <gradients, direction>, which can be differentiated. It is 0, of the type of ``like``, without any."""
    terms = [(gradient.to(direction[name].dtype) * direction[name]).sum() for name, gradient in gradients.items()]
    return torch.stack(terms).sum() if terms else like.new_zeros(())
