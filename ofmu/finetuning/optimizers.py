"""The optimizers of a training in one process: AdamW of PyTorch, and AdamW with moments in 8 bits."""

from __future__ import annotations

from typing import Protocol

import torch

from ofmu.finetuning.checkpoints import ParameterSpace
from ofmu.finetuning.config import TrainingConfig
from ofmu.vectors.base import Vector
from ofmu.vectors.optimizers import ShardOptimizer

_MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainingOptimizer(Protocol):
    """Takes the steps of a training."""

    def step(self, rate: float) -> None:
        """Take a step with this learning rate along the parameters' gradients, and discard the gradients."""

    def vectors(self) -> dict[str, Vector]:
        """Return the moments by name, for a checkpoint."""

    def restore(self, steps: int, moments: dict[str, Vector]) -> None:
        """Continue from the number of steps and the moments of a checkpoint."""


def training_optimizer(space: ParameterSpace, training: TrainingConfig) -> TrainingOptimizer:
    """Return the optimizer that ``training.optimizer`` names."""
    chosen = QuantizedAdamW if training.optimizer == "adamw_8bit" else TorchAdamW
    return chosen(space, training)


class TorchAdamW:
    """AdamW of PyTorch."""

    def __init__(self, space: ParameterSpace, training: TrainingConfig) -> None:
        self._space, self._parameters = space, space.parameters
        rate, decay = training.learning_rate, training.weight_decay
        self._optimizer = torch.optim.AdamW(self._parameters, lr=rate, weight_decay=decay)

    def step(self, rate: float) -> None:
        """Take a step along the parameters' gradients, and discard the gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._space.clear_gradient()

    def vectors(self) -> dict[str, Vector]:
        """Return the moments. These are the live tensors, no copies."""
        state = self._optimizer.state
        return {name: [state[value][name].view(-1) for value in self._parameters] for name in _MOMENTS}

    def restore(self, steps: int, moments: dict[str, Vector]) -> None:
        """Set moments and the step count."""
        for index, value in enumerate(self._parameters):
            self._optimizer.state[value] = {
                "step": torch.tensor(float(steps)),
                **{name: moments[name][index].view_as(value) for name in _MOMENTS},
            }


class QuantizedAdamW:
    """AdamW with moments in 8 bits, by the code of the methods' steps."""

    def __init__(self, space: ParameterSpace, training: TrainingConfig) -> None:
        self._space = space
        rate, decay = training.learning_rate, training.weight_decay
        self._optimizer = ShardOptimizer(space, "adamw_8bit", rate, weight_decay=decay)

    def step(self, rate: float) -> None:
        """Take a step along the parameters' gradients, and discard the gradients."""
        self._optimizer.lr = rate
        self._optimizer.step(self._space.gradient())
        self._space.clear_gradient()

    def vectors(self) -> dict[str, Vector]:
        """Return copies of the moments in fp32."""
        return self._optimizer.vectors()

    def restore(self, steps: int, moments: dict[str, Vector]) -> None:
        """Set moments and the step count."""
        self._optimizer.restore(steps, moments)
