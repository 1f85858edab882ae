"""Update rules on the shards of a vector space. The arithmetic is the same on every layout, so ZeRO stages agree."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ofmu.vectors.base import Vector, VectorSpace

UpdateRule = Literal["sgd", "normalized", "adamw"]


def moments_of(rule: UpdateRule) -> int:
    """Return how many vectors the rule keeps from step to step."""
    return 2 if rule == "adamw" else 0


def temporaries_of(rule: UpdateRule) -> int:
    """Return how many vectors a step of the rule makes and frees again."""
    return 2 if rule == "adamw" else 0  # the root of the second moment, and its quotient


class ShardOptimizer:
    """Moves the parameters along a vector v.

    A rule works element by element or needs one global norm. So each rank updates its own shards.

    Args:
        space: the space of the parameters.
        rule: ``sgd`` moves by lr·v, ``normalized`` by lr·v/‖v‖, and ``adamw`` by torch's AdamW.
        lr: the learning rate.
        ascend: True: move along v. False: move against v.
        weight_decay: decoupled weight decay of ``adamw``.
    """

    def __init__(
        self, space: VectorSpace, rule: UpdateRule, lr: float, *, ascend: bool = False, weight_decay: float = 0.0
    ) -> None:
        self._space = space
        self._rule = rule
        self.lr = lr
        self._sign = 1.0 if ascend else -1.0
        self._parameters = [nn.Parameter(master, requires_grad=True) for master in space.masters()]
        self._adamw = (
            torch.optim.AdamW(self._parameters, lr=lr, weight_decay=weight_decay, maximize=ascend)
            if rule == "adamw"
            else None
        )

    @torch.no_grad()
    def step(self, vector: Vector, norm: float | None = None) -> None:
        """Move the parameters, and synchronise the model.

        Args:
            vector: v. The step does not change ``vector``.
            norm: ‖v‖, for ``normalized``. None: the step computes the norm.
        """
        if self._adamw is not None:
            self._adamw.param_groups[0]["lr"] = self.lr
            for parameter, part in zip(self._parameters, vector, strict=True):
                parameter.grad = part
            self._adamw.step()
            self._adamw.zero_grad(set_to_none=True)
        else:
            scale = self.lr
            if self._rule == "normalized":
                norm = self._space.norm(vector) if norm is None else norm
                scale = self.lr / norm if norm > 0 else 0.0
            self._space.add(self._space.masters(), vector, self._sign * scale)
        self._space.sync_model()

    def vectors(self) -> dict[str, Vector]:
        """Return the moments by name. These are the live tensors, no copies. Only ``adamw`` has moments."""
        if self._adamw is None or self.steps == 0:
            return {}
        states = [self._adamw.state[parameter] for parameter in self._parameters]
        return {name: [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")}

    @property
    def steps(self) -> int:
        """Number of steps that ``adamw`` has taken; 0 for the other rules."""
        if self._adamw is None or not self._adamw.state:
            return 0
        return int(self._adamw.state[self._parameters[0]]["step"])

    def restore(self, steps: int, vectors: dict[str, Vector]) -> None:
        """Continue from the step count and the moments of a checkpoint."""
        if self._adamw is None or steps == 0:
            return
        for index, parameter in enumerate(self._parameters):
            moments: dict[str, Tensor] = {name: vector[index] for name, vector in vectors.items()}
            self._adamw.state[parameter] = {"step": torch.tensor(float(steps)), **moments}
