"""ℓ1-sparse unlearning: fine-tuning with a sparsity penalty, which shrinks weights that only forget rows need."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeVar

import torch

from ofmu.config.base import NonNegativeFloat
from ofmu.methods import register
from ofmu.methods.finetune import Finetune, RetainOnlyConfig
from ofmu.methods.single_loop import Direction
from ofmu.vectors.base import add_scaled_

RowT = TypeVar("RowT")


class L1SparseConfig(RetainOnlyConfig):
    """The settings of ℓ1-sparse unlearning."""

    name: Literal["l1sparse"] = "l1sparse"
    """Selects ℓ1-sparse unlearning."""
    sparsity_weight: NonNegativeFloat = 5e-4
    """w, the weight of ‖θ‖₁ at the first step. The weight falls linearly to 0 over the steps."""


@register("l1sparse")
class L1Sparse(Finetune[RowT]):
    """L = αL_r + w(1 − t/T)‖θ‖₁ over all trainable weights; the recorded retain loss is L_r without the penalty."""

    Config = L1SparseConfig
    title = "ℓ1-sparse"
    source = "Jia et al., arXiv 2304.04934, ℓ1-sparse MU, with the falling weight of the authors' code (Unlearn-Sparse)"
    space: ClassVar[dict[str, Any]] = Finetune.space | {"sparsity_weight": {"low": 1e-5, "high": 1e-2, "log": True}}
    config: L1SparseConfig

    def direction(self) -> Direction:
        """Return α∇L_r + w(1 − t/T) sign θ."""
        direction = super().direction()
        weight = self.config.sparsity_weight * (1 - self.steps_taken / self.config.steps)
        space = self.engine.space
        with torch.no_grad():
            for index, piece in space.parameter_pieces():
                sign = space.read_parameters(index, piece).sign()
                add_scaled_(direction.vector[index][piece], sign, weight)
        space.clear_frozen(direction.vector)
        return direction
