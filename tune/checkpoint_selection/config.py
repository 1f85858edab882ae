"""The ``search.checkpoint_selection`` section of a config file."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from ofmu.config.base import PositiveInt, Section
from tune.early_stopping.config import SLACK

Fraction = Annotated[float, Field(gt=0, lt=1)]


class CheckpointSelectionConfig(Section):
    """Which rounds of a trial are candidates for the front, besides its last round."""

    enabled: bool = False
    """Whether a trial may stand for an earlier round than its last. Its model, metrics and objectives are then those of
    that round."""
    rounds: Annotated[list[Fraction], Field(min_length=1)] = Field(default=[0.25, 0.5, 0.75])
    """The rounds at which a trial is scored, as fractions of its own rounds. Of these, a trial keeps the weights of one
    at a time: of the one that would add most to the front."""
    rows: PositiveInt = 16
    """Rows of each evaluation set on which a trial is scored during its run, without generation. All trials are scored
    on the same rows. At its end, a trial scores its last round and the kept one on all rows."""
    stop_margin: Annotated[float, Field(ge=0, le=1)] | None = 0.2
    """A trial ends as pruned at a scored round if none of its rounds would add to the front, and neither would the
    present round if each objective were better by this share of the objective's range. None: no trial is stopped."""

    def scored_rounds(self, total: int) -> tuple[int, ...]:
        """Return the rounds, out of ``total``, at which a trial is scored before its last round."""
        return tuple(sorted({max(1, math.ceil(share * total - SLACK)) for share in self.rounds} - {total}))
