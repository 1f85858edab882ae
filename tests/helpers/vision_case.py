"""A vision method in float64 on all rows at once, and gradients of a loss by plain autograd to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.methods.registry import method_class
from ofmu.testing import MemoryTask, tiny_classifier, tiny_image_task
from ofmu.vision.rows import ImageRow

ALL_ROWS = 1000
"""A batch size above the number of rows. A minibatch is then the whole set, and its order does not matter."""


def plain_logits(model: Any, rows: Sequence[ImageRow]) -> torch.Tensor:
    """Return the logits by their definition. The inputs are (pixels / 255 − 0.5) · 4."""
    inputs = torch.stack([(row.pixels.double() / 255 - 0.5) * 4 for row in rows])
    return model(pixel_values=inputs).logits


def labels_of(rows: Sequence[ImageRow]) -> torch.Tensor:
    """Return the classes of the images."""
    return torch.tensor([row.label for row in rows])


class Case:
    """A method before its first step, and a copy of its model at θ_0."""

    def __init__(self, name: str, task: MemoryTask[ImageRow] | None = None, **settings: Any) -> None:
        self.task = task or tiny_image_task(8, 10)
        self.engine = TorchEngine(tiny_classifier(torch.float64), CostTracker())
        self.model = tiny_classifier(torch.float64)
        config = method_class(name).Config(**({"batch_size": ALL_ROWS} | settings))
        self.method: Any = build_method(Context(self.engine, self.task, seed=3), config)

    def gradient(self, loss: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        """Return the gradient of ``loss(model)`` at θ_0, flat, by plain autograd."""
        parameters = list(self.model.parameters())
        gradients = torch.autograd.grad(loss(self.model), parameters, allow_unused=True)
        pairs = zip(gradients, parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])

    def flat(self, vector: Any = None) -> torch.Tensor:
        """Return a vector of the engine, flat, in the order of the model's parameters. None: the parameters."""
        full = self.engine.space.gather(self.engine.space.masters() if vector is None else vector)
        return torch.cat([full[name].detach().flatten() for name, _ in self.model.named_parameters()])

    def start(self) -> torch.Tensor:
        """Return θ_0, flat."""
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])
