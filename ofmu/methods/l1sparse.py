"""Sparsity-regularised fine-tuning: weights that only the forgotten rows needed shrink away."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeVar

import torch

from ofmu.config.base import NonNegativeFloat
from ofmu.methods import register
from ofmu.methods.finetune import Finetune, RetainOnlyConfig
from ofmu.methods.single_loop import Direction

RowT = TypeVar("RowT")


class L1SparseConfig(RetainOnlyConfig):
    """The settings of ℓ1-sparse unlearning."""

    name: Literal["l1sparse"] = "l1sparse"
    sparsity_weight: NonNegativeFloat = 5e-4
    """The weight of ‖θ‖₁ at the first step; it falls linearly to 0 at the last."""


@register("l1sparse")
class L1Sparse(Finetune[RowT]):
    """L = αL_r + w(1 − t/T)‖θ‖₁ over all trainable weights; the recorded retain loss is L_r alone."""

    Config = L1SparseConfig
    title = "ℓ1-sparse"
    source = "Jia et al., arXiv 2304.04934, ℓ1-sparse MU, with the falling weight of their code (Unlearn-Sparse)"
    space: ClassVar[dict[str, Any]] = Finetune.space | {"sparsity_weight": {"low": 1e-5, "high": 1e-2, "log": True}}
    settings: L1SparseConfig

    @torch.no_grad()
    def _add_penalty(self, found: Direction) -> None:
        weight = self.settings.sparsity_weight * (1 - self.steps_taken / self.settings.steps)
        for into, master in zip(found.vector, self.engine.space.masters(), strict=True):
            into.add_(master.sign(), alpha=weight)

    def direction(self) -> Direction:
        """Return α∇L_r + w(1 − t/T) sign θ."""
        found = super().direction()
        self._add_penalty(found)
        return found
