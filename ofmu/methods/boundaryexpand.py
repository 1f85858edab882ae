"""Boundary expand: forget images move into a class of their own, which is then cut off."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ofmu.config.base import NonNegativeFloat
from ofmu.errors import ModelError
from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE, Direction, SingleLoopConfig, SingleLoopMethod
from ofmu.vectors.base import sum_over_ranks
from ofmu.vectors.optimizers import ShardOptimizer
from ofmu.vectors.whole import ReplicatedSpace
from ofmu.vision.loss import ImageLoss, image_loss
from ofmu.vision.rows import ImageRow


class BoundaryExpandConfig(SingleLoopConfig):
    """Boundary expand's settings."""

    name: Literal["boundaryexpand"] = "boundaryexpand"
    retain_weight: NonNegativeFloat = 0.0
    """0, as published: no retain row is used."""


class Shadow(nn.Module):
    """The output neuron of the added class: weights of the classifier's features and, last, a bias."""

    def __init__(self, features: int, seed: int, like: Tensor) -> None:
        super().__init__()
        bound = 1 / math.sqrt(features)
        drawn = torch.rand(features + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.neuron = nn.Parameter(((2 * drawn - 1) * bound).to(like))


class ShadowLoss:
    """Cross-entropy over the classes and the shadow, to which every row belongs; averaged over rows."""

    def __init__(self, loss: ImageLoss, head: nn.Linear, shadow: Shadow) -> None:
        self._loss, self._head, self._shadow = loss, head, shadow

    def size(self, row: ImageRow) -> int:
        """Return 1: the mean is over rows."""
        return 1

    def tokens(self, row: ImageRow) -> int:
        """Return 1: the ledger counts images."""
        return 1

    def total(self, module: Callable[..., Any], rows: Sequence[ImageRow], device: torch.device) -> Tensor:
        """Return the rows' summed loss."""
        seen: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self._loss.logits(module, rows, device)
        finally:
            handle.remove()
        neuron = self._shadow.neuron
        shadow = seen[0].to(neuron.dtype) @ neuron[:-1] + neuron[-1]
        wide = torch.cat([logits, shadow[:, None]], dim=1)
        labels = torch.full((len(rows),), logits.shape[1], dtype=torch.long, device=device)
        return functional.cross_entropy(wide, labels, reduction="sum")


@register("boundaryexpand")
class BoundaryExpand(SingleLoopMethod[ImageRow]):
    """L = γ CE(forget, K + 1) + αL_r over K + 1 classes; the class K + 1 is left out of the result.

    The added neuron is held whole beside the engine and moved by the same rule; ``max_grad_norm`` does not see it.
    """

    Config: ClassVar[type[SingleLoopConfig]] = BoundaryExpandConfig
    title = "Boundary expand"
    source = "Chen et al. (Boundary Unlearning), arXiv 2303.11570"
    tasks = frozenset({"vision"})
    space: ClassVar[dict[str, Any]] = SINGLE_LOOP_SPACE | {"retain_weight": {"low": 0.0, "high": 5.0}}
    published: ClassVar = {"retain_weight": 0.0, "update": "sgd", "lr": 1e-5}

    def __init__(self, context: Context[ImageRow], settings: BoundaryExpandConfig) -> None:
        super().__init__(context, settings)
        heads = [module for module in self.engine.model.modules() if isinstance(module, nn.Linear)]
        if not heads:
            raise ModelError("boundaryexpand needs a classifier that ends in a linear layer: choose another method")
        shadow = Shadow(heads[-1].in_features, context.seed, self.engine.space.masters()[0])
        self._shadow_space = ReplicatedSpace(shadow)
        self._shadow_optimizer = ShardOptimizer(
            self._shadow_space, settings.update, settings.lr, weight_decay=settings.weight_decay
        )
        self._loss = ShadowLoss(image_loss(self.task), heads[-1], shadow)

    def forget_loss(self, rows: Sequence[ImageRow]) -> ShadowLoss:
        """Return the cross-entropy with the shadow class as every row's label."""
        self._shadow_space.clear_gradient()
        return self._loss

    def after_step(self, direction: Direction) -> None:
        """Move the shadow neuron by the global gradient, which every rank holds a part of."""
        gradient = self._shadow_space.zeros()
        self._shadow_space.add_gradient(gradient, 1.0)
        if self.engine.world_size > 1:
            # each rank's loss was scaled by their number, since engines average
            summed = sum_over_ranks(gradient[0].double().cpu()) / self.engine.world_size
            gradient = [summed.to(gradient[0])]
        self._shadow_optimizer.lr = self.optimizer.lr
        self._shadow_optimizer.step(gradient)

    def extra_state(self) -> dict[str, Any]:
        """Return the shadow neuron and its moments."""
        held = {"neuron": self._shadow_space.masters(), **self._shadow_optimizer.vectors()}
        lists = {name: vector[0].tolist() for name, vector in held.items()}
        return {"steps": self._shadow_optimizer.steps, "vectors": lists}

    def restore_extra(self, state: dict[str, Any]) -> None:
        """Take :meth:`extra_state` back."""
        like = self._shadow_space.masters()[0]
        vectors = {name: [torch.tensor(values).to(like)] for name, values in state["vectors"].items()}
        self._shadow_space.restore(vectors.pop("neuron"))
        self._shadow_optimizer.restore(int(state["steps"]), vectors)
