"""Update rules on the shards of a vector space. The arithmetic is the same on every layout, so ZeRO stages agree."""

from __future__ import annotations

from typing import Literal

import torch
from torch.optim.adamw import adamw

from ofmu.vectors.base import Vector, VectorSpace, pieces, widened
from ofmu.vectors.moments import BYTES_PER_VALUE, ExactMoment, Moment, QuantizedMoment

UpdateRule = Literal["sgd", "normalized", "adamw", "adamw_8bit"]
_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""The moments of AdamW, and whether they may be negative."""
_PARTS_IN_8_BITS = 8
"""Into how many parts a piece is divided for moments in 8 bits, which take ten temporary tensors to read and write."""
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
"""The defaults of torch's AdamW."""


def has_moments(rule: UpdateRule) -> bool:
    """Return whether the rule is a form of AdamW."""
    return rule in ("adamw", "adamw_8bit")


def moments_of(rule: UpdateRule) -> float:
    """Return how much the rule keeps from step to step, as a number of fp32 vectors."""
    each = {"adamw": 1.0, "adamw_8bit": BYTES_PER_VALUE / 4}.get(rule, 0.0)
    return len(_MOMENTS) * each


def clipping_factor(norm: float, limit: float | None) -> float:
    """Return the factor that shortens a vector of this norm to ``limit``. None: no limit."""
    return 1.0 if limit is None or norm <= limit else limit / norm


@torch.no_grad()
def first_step_(rule: UpdateRule, vector: Vector, norm: float) -> None:
    """Turn a vector v into the first step that a rule takes along v with the learning rate 1.

    ``normalized``: v/‖v‖. AdamW: v/(|v| + ε) element by element, since the moments are corrected for their start.

    Args:
        rule: the rule.
        vector: v, which is overwritten.
        norm: ‖v‖. At 0, v stays 0.
    """
    for part in vector:
        if rule == "normalized" and norm > 0:
            part.div_(norm)
        elif has_moments(rule):
            for piece in pieces(part):
                part[piece].div_(part[piece].abs().add_(_EPSILON))


class ShardOptimizer:
    """Moves the parameters along a vector v.

    A rule works element by element or needs one global norm. So each rank updates its own shards.

    Args:
        space: the space of the parameters.
        rule: ``sgd`` moves by lr·v, ``normalized`` by lr·v/‖v‖, and ``adamw`` by torch's AdamW. ``adamw_8bit``
            keeps the moments of AdamW in 8 bits. The blocks of 8-bit moments begin where a rank's tensors begin, so
            layouts agree only within the rounding of the moments.
        lr: the learning rate.
        ascend: True: move along v. False: move against v.
        weight_decay: decoupled weight decay of AdamW.
    """

    def __init__(
        self, space: VectorSpace, rule: UpdateRule, lr: float, *, ascend: bool = False, weight_decay: float = 0.0
    ) -> None:
        self._space, self._rule, self._ascend, self._weight_decay = space, rule, ascend, weight_decay
        self.lr = lr
        self.steps = 0
        """Number of steps that AdamW has taken; 0 for the other rules."""
        self._moments: dict[str, Moment] = {}

    @torch.no_grad()
    def step(self, vector: Vector, norm: float | None = None, *, factor: float = 1.0) -> None:
        """Move the parameters along ``factor``·v, and synchronise the model.

        Args:
            vector: v. The step does not change ``vector``.
            norm: ‖v‖, for ``normalized``. None: the step computes the norm.
            factor: a number by which v is multiplied, such as the ratio of a clipping. ``normalized`` ignores it.
        """
        if has_moments(self._rule):
            self._adamw_step(vector, factor)
        else:
            scale = self.lr * factor
            if self._rule == "normalized":
                norm = self._space.norm(vector) if norm is None else norm
                scale = self.lr / norm if norm > 0 else 0.0
            self._space.add_to_parameters(vector, scale if self._ascend else -scale)
        self._space.sync_model()

    def _adamw_step(self, vector: Vector, factor: float) -> None:
        """Take torch's AdamW step piece by piece, so that the temporary tensors of the rule are small."""
        if not self._moments:
            self._moments = {name: self._moment(name) for name in _MOMENTS}
        parts = _PARTS_IN_8_BITS if self._rule == "adamw_8bit" else 1
        for index, piece in self._space.parameter_pieces(parts):
            values, direction = self._space.read_parameters(index, piece), widened(vector[index][piece])
            average, square = (self._moments[name].read(index, piece) for name in _MOMENTS)
            adamw(
                [values],
                [direction if factor == 1 else direction * factor],
                [average],
                [square],
                [],
                [torch.tensor(float(self.steps))],
                foreach=False,
                amsgrad=False,
                beta1=_BETAS[0],
                beta2=_BETAS[1],
                lr=self.lr,
                weight_decay=self._weight_decay,
                eps=_EPSILON,
                maximize=self._ascend,
            )
            self._space.write_parameters(index, piece, values)
            for name, changed in zip(_MOMENTS, (average, square), strict=True):
                self._moments[name].write(index, piece, changed)
        self.steps += 1

    def vectors(self) -> dict[str, Vector]:
        """Return the moments of AdamW by name: the live tensors, or copies in host memory of moments in 8 bits."""
        return {name: moment.vector() for name, moment in self._moments.items()}

    def restore(self, steps: int, vectors: dict[str, Vector]) -> None:
        """Continue from the step count and the moments of a checkpoint."""
        if has_moments(self._rule) and steps > 0:
            self.steps = steps
            self._moments = {name: self._moment(name, vector) for name, vector in vectors.items()}

    def _moment(self, name: str, stored: Vector | None = None) -> Moment:
        """Return the moment of a checkpoint, or zeros."""
        if self._rule == "adamw":
            return ExactMoment(self._space.zeros() if stored is None else stored)
        moment = QuantizedMoment(self._space.layout(), signed=_MOMENTS[name])
        if stored is not None:
            moment.fill(stored)
        return moment
