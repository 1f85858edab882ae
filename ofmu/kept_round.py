"""The weights of one round of a run, kept until the end of the run, where they may become the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

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
        masters = [master.detach() for master in space.masters()]
        if reuse is None:
            return cls(round, [master.to("cpu", copy=True) for master in masters])
        for kept, master in zip(reuse.theta, masters, strict=True):
            kept.copy_(master)
        return cls(round, reuse.theta)

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
