"""Losses with closed-form derivatives, on one small parameter vector in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.methods.ofmu.config import OfmuConfig
from ofmu.methods.ofmu.derivatives import Derivatives

DIMENSION = 6
TOLERANCE = {"exact": 1e-9, "reverse_over_forward": 1e-9, "central": 1e-5, "forward": 1e-3}


class Point(nn.Module):
    """A parameter vector in two tensors, so that a test covers the flat layout."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.left = nn.Parameter(values[:2].clone())
        self.right = nn.Parameter(values[2:].clone())

    def forward(self) -> Tensor:
        return torch.cat([self.left, self.right])


class AnalyticLoss:
    """A function of the parameter vector. All rows have the same loss."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def size(self, row: int) -> int:
        return 1

    def tokens(self, row: int) -> int:
        return 1

    def total(self, module: Callable[..., Any], rows: Sequence[int], device: torch.device) -> Tensor:
        return len(rows) * self.function(module())


def quadratic(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(DIMENSION, DIMENSION, generator=generator, dtype=torch.float64)
    return root @ root.T / DIMENSION + torch.eye(DIMENSION, dtype=torch.float64), torch.randn(
        DIMENSION, generator=generator, dtype=torch.float64
    )


A, CENTRE_F = quadratic(1)
B, CENTRE_R = quadratic(2)
THETA = quadratic(3)[1]
FORGET = AnalyticLoss(lambda x: 0.5 * (x - CENTRE_F) @ A @ (x - CENTRE_F))
RETAIN = AnalyticLoss(lambda x: 0.5 * (x - CENTRE_R) @ B @ (x - CENTRE_R))
CURVED_F = AnalyticLoss(lambda x: torch.log(torch.cosh(x - CENTRE_F)).sum() + 0.1 * (x**4).sum())
CURVED_R = AnalyticLoss(lambda x: torch.exp(0.3 * x).sum() + 0.5 * (x * CENTRE_R).sum() ** 2)


def similarity_gradient_of_quadratics(x: Tensor) -> Tensor:
    """Return ∇S of the quadratic losses, whose Hessians H_f = A and H_r = B are constant."""
    f, r = A @ (x - CENTRE_F), B @ (x - CENTRE_R)
    nf, nr = f.norm(), r.norm()
    s = f @ r / (nf * nr)
    return A @ (r / nr - s * f / nf) / nf + B @ (f / nf - s * r / nr) / nr


def phi_gradient_of_quadratics(x: Tensor, beta: float) -> Tensor:
    return A @ (x - CENTRE_F) - beta * similarity_gradient_of_quadratics(x)


def paper_config(**settings: Any) -> OfmuConfig:
    """Return a config with the paper's Φ. ``settings`` overrides it."""
    return OfmuConfig(
        **({"similarity_scale": "absolute", "similarity_threshold": -1, "forget_margin": None} | settings)
    )


def make_derivatives(
    config: OfmuConfig, forget_loss: AnalyticLoss, retain_loss: AnalyticLoss
) -> tuple[Derivatives[int], TorchEngine]:
    """Return the derivatives at THETA, and their engine."""
    engine = TorchEngine(Point(THETA), CostTracker())
    return Derivatives(engine, forget_loss, retain_loss, config), engine


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
