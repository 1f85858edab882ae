"""The weights of one round of a run, kept until the end of the run, where they may become the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch

from ofmu.vectors.base import Vector, VectorSpace

_VECTOR = "kept_round"
"""The name of the weights in a checkpoint."""


@dataclass(frozen=True)
class KeptRound:
    """A round and its weights: one fp32 vector of this rank's parameters, in host memory.

    A checkpoint holds it, so it costs as many bytes there as the parameters do. A run keeps one round at a time.
    """

    round: int
    """Rounds count from 1."""
    theta: Vector

    @classmethod
    def of(cls, round: int, space: VectorSpace, reuse: Self | None = None) -> Self:
        """Return a copy of the present parameters.

        Args:
            round: the present round.
            space: the parameters.
            reuse: a kept round that is given up. The copy takes its memory, so that one copy exists at any time.
        """
        if reuse is None:
            theta = [torch.empty(flat.length, dtype=flat.dtype) for flat in space.layout()]
        else:
            theta = reuse.theta
        for index, piece in space.parameter_pieces():
            theta[index][piece] = space.read_parameters(index, piece)
        return cls(round, theta)

    @classmethod
    def pop_from(cls, state: dict[str, Any], vectors: dict[str, Vector]) -> Self | None:
        """Take the kept round out of a checkpoint; None if it holds none."""
        round, theta = state.get(_VECTOR), vectors.pop(_VECTOR, None)
        if round is None or theta is None:
            return None
        return cls(int(round), [part.cpu() for part in theta])

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint stores beside the weights."""
        return {_VECTOR: self.round}

    @property
    def vectors(self) -> dict[str, Vector]:
        """The weights under their name in a checkpoint."""
        return {_VECTOR: self.theta}
