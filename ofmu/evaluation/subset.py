"""Fewer rows of an evaluation set, where the whole set costs too much."""

from __future__ import annotations

from collections.abc import Sequence

from ofmu.data.rows import Row
from ofmu.evaluation.scores import row_hash


def chosen_places(rows: Sequence[Row], count: int) -> tuple[int, ...]:
    """Return the indices, ascending, of the ``count`` rows whose content hashes are lowest.

    The choice depends on what the rows say, not on their order: it is as good as drawn, and the same everywhere.
    """
    return tuple(sorted(sorted(range(len(rows)), key=lambda place: row_hash(rows[place]))[:count]))
