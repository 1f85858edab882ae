"""Boundary expand: the forget images move to an added class, which the result does not have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ofmu.config.base import NonNegativeFloat
from ofmu.errors import ModelError
from ofmu.losses import Loss
from ofmu.methods import register
from ofmu.methods.base import Context
from ofmu.methods.single_loop import SINGLE_LOOP_SPACE, Direction, SingleLoopConfig, SingleLoopMethod
from ofmu.vectors.base import Vector, sum_over_ranks
from ofmu.vectors.optimizers import ShardOptimizer
from ofmu.vectors.whole import ReplicatedSpace
from ofmu.vision.loss import ImageLoss, image_loss
from ofmu.vision.rows import ImageRow


class BoundaryExpandConfig(SingleLoopConfig):
    """The settings of boundary expand."""

    name: Literal["boundaryexpand"] = "boundaryexpand"
    """Selects boundary expand."""
    retain_weight: NonNegativeFloat = 0.0
    """α, the weight of L_r. 0, as published: the retain rows are not used."""


class Shadow(nn.Module):
    """The output neuron of the added class: one weight per feature of the classifier, and a bias as the last weight.

    Args:
        features: number of inputs of the classifier's linear layer.
        seed: draws the initial weights.
        like: a tensor with the dtype and the device of the weights.
    """

    def __init__(self, features: int, seed: int, like: Tensor) -> None:
        super().__init__()
        bound = 1 / math.sqrt(features)
        uniform = torch.rand(features + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.neuron = nn.Parameter(((2 * uniform - 1) * bound).to(like))


class ShadowLoss:
    """Cross-entropy over the classes and the shadow class, which is the label of every row; averaged over rows.

    Args:
        loss: gives the logits of the classes.
        head: the linear layer whose inputs are the features of the shadow neuron.
        shadow: the neuron of the shadow class.
    """

    def __init__(self, loss: ImageLoss, head: nn.Linear, shadow: Shadow) -> None:
        self._loss, self._head, self._shadow = loss, head, shadow

    def size(self, row: ImageRow) -> int:
        """Return 1, since the mean is over rows."""
        return 1

    def tokens(self, row: ImageRow) -> int:
        """Return 1, since the cost tracker counts images."""
        return 1

    def total(self, module: Callable[..., Any], rows: Sequence[ImageRow], device: torch.device) -> Tensor:
        """Return the summed loss of the rows."""
        features: list[Tensor] = []
        handle = self._head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        try:
            logits = self._loss.logits(module, rows, device)
        finally:
            handle.remove()
        neuron = self._shadow.neuron
        shadow_logits = features[0].to(neuron.dtype) @ neuron[:-1] + neuron[-1]
        all_logits = torch.cat([logits, shadow_logits[:, None]], dim=1)
        labels = torch.full((len(rows),), logits.shape[1], dtype=torch.long, device=device)
        return functional.cross_entropy(all_logits, labels, reduction="sum")


@register("boundaryexpand")
class BoundaryExpand(SingleLoopMethod[ImageRow]):
    """L = γ CE(forget, K + 1) over K + 1 classes + αL_r over K; the class K + 1 is left out of the result.

    Every rank holds the whole added neuron, outside the engine. The neuron has the same update rule as the model.
    ``max_grad_norm`` does not include the neuron.
    """

    Config: ClassVar[type[SingleLoopConfig]] = BoundaryExpandConfig
    title = "Boundary expand"
    source = "Chen et al. (Boundary Unlearning), arXiv 2303.11570"
    tasks = frozenset({"vision"})
    space: ClassVar[dict[str, Any]] = SINGLE_LOOP_SPACE | {"retain_weight": {"low": 0.0, "high": 5.0}}
    published: ClassVar = {"retain_weight": 0.0, "update": "sgd", "lr": 1e-5}

    def __init__(self, context: Context[ImageRow], config: BoundaryExpandConfig) -> None:
        super().__init__(context, config)
        heads = [module for module in self.engine.model.modules() if isinstance(module, nn.Linear)]
        if not heads:
            raise ModelError("boundaryexpand needs a classifier that ends in a linear layer: choose another method")
        shadow = Shadow(heads[-1].in_features, context.seed, self.engine.space.read_parameters(0, slice(0, 1)))
        self._shadow_space = ReplicatedSpace(shadow)
        self._shadow_optimizer = ShardOptimizer(
            self._shadow_space, config.update, config.lr, weight_decay=config.weight_decay
        )
        self._loss = ShadowLoss(image_loss(self.task), heads[-1], shadow)
        self._loss_weight = 0.0
        """γ of the last step, times the weight of the stop."""

    def forget_loss(self, rows: Sequence[ImageRow]) -> ShadowLoss:
        """Return the cross-entropy with the shadow class as the label of every row."""
        self._shadow_space.clear_gradient()
        return self._loss

    def add_gradient(
        self, loss: Loss[ImageRow] | None, rows: Sequence[ImageRow], into: Vector, weight: float
    ) -> float | None:
        """Add ``weight`` times the gradient of ``loss`` to ``into``. Keep the weight of the shadow loss."""
        if loss is self._loss:
            self._loss_weight = weight
        return super().add_gradient(loss, rows, into, weight)

    def on_step_end(self, direction: Direction) -> None:
        """Update the shadow neuron by the global gradient, of which every rank has a part."""
        if direction.forget_loss is None:
            return  # The neuron has a gradient in L_forget alone, and that of an earlier step is out of date.
        gradient = self._shadow_space.zeros()
        # The engine multiplies only the gradients of its own parameters by the weight.
        self._shadow_space.add_gradient(gradient, self._loss_weight)
        if self.engine.world_size > 1:
            # Engines average gradients over ranks, so the engine multiplied each rank's loss by the number of ranks.
            total = sum_over_ranks(gradient[0].double().cpu()) / self.engine.world_size
            gradient = [total.to(gradient[0])]
        self._shadow_optimizer.lr = self.optimizer.lr
        self._shadow_optimizer.step(gradient)

    def extra_state(self) -> dict[str, Any]:
        """Return the shadow neuron and its moments."""
        vectors = {"neuron": self._shadow_space.masters(), **self._shadow_optimizer.vectors()}
        lists = {name: vector[0].tolist() for name, vector in vectors.items()}
        return {"steps": self._shadow_optimizer.steps, "vectors": lists}

    def restore_extra(self, state: dict[str, Any]) -> None:
        """Restore the shadow neuron and its moments."""
        like = self._shadow_space.masters()[0]
        vectors = {name: [torch.tensor(values).to(like)] for name, values in state["vectors"].items()}
        self._shadow_space.restore(vectors.pop("neuron"))
        self._shadow_optimizer.restore(int(state["steps"]), vectors)
