"""The ``search.early_stopping`` section of a config file."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from ofmu.config.base import PositiveInt, Section

SLACK = 1e-9
"""Tolerance of a comparison of rounds with a rung, so that rounding errors change nothing: 3 of 10 rounds reach 0.3."""


class EarlyStoppingConfig(Section):
    """When running trials are compared, and how many of them continue."""

    enabled: bool = False
    """Whether trials are stopped early."""
    reduction_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0
    """One trial in this many continues after a rung. Each rung is this many times the rung before it."""
    first_rung: Annotated[float, Field(gt=0, lt=1)] = 0.125
    """The first rung, as a fraction of a trial's own rounds."""
    grace_rounds: PositiveInt = 2
    """No trial is stopped before this round."""
    rung_size: PositiveInt = 4
    """Number of trials that a rung must have seen before it stops a trial. 1: plain ASHA."""
    rows: PositiveInt = 16
    """Rows of each evaluation set on which a trial is scored at a rung. All trials are scored on the same rows."""

    @property
    def levels(self) -> tuple[float, ...]:
        """The rungs as fractions of a trial's own rounds, ascending, all below 1."""
        count = math.ceil(math.log(1 / self.first_rung, self.reduction_factor) - SLACK)
        return tuple(self.first_rung * self.reduction_factor**step for step in range(count))

    def rung_rounds(self, total: int) -> tuple[int, ...]:
        """Return the rounds, out of ``total``, at which a trial reaches a rung. Only these rounds need objectives."""
        reached = {max(1, math.ceil(level * total - SLACK)) for level in self.levels}
        return tuple(sorted(reached - {total}))

    def level_reached(self, round: int, total: int) -> float | None:
        """Return the highest rung that ``round`` of ``total`` rounds reaches; None before the first rung."""
        return max((level for level in self.levels if round >= level * total - SLACK), default=None)
