"""What a round callback decides. This file does not load torch, so the driver of a search can import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class AfterRound(Protocol):
    """The state of a run after a round."""

    @property
    def round(self) -> int:
        """Rounds count from 1."""


@dataclass(frozen=True, kw_only=True)
class RoundDecision:
    """What a run does after a round. All ranks must decide alike."""

    keep: bool = False
    """Keep the weights of this round, in place of weights that were kept before."""
    end: bool = False
    """End the run here. Its result is the kept round; or this round if none was kept."""


@dataclass(frozen=True)
class StopAfterRound:
    """A round callback that ends a run after a round, so that its model is the one of that round."""

    round: int

    def __call__(self, state: AfterRound) -> RoundDecision:
        """End the run at the round."""
        return RoundDecision(end=state.round >= self.round)
