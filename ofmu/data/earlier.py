"""Rows that earlier runs forgot. They never come back through the rows that a later run retains."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ofmu.data.config import ColumnsConfig
from ofmu.data.files import read_rows
from ofmu.data.normalized import normalized
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.errors import DataError

_FORGET_SETS = ("forget", "members", "mia_forget")
"""Beginnings of the names of the evaluation sets that hold what is forgotten. RWKU has ``mia_forget``."""


def read_earlier(files: Sequence[str]) -> tuple[Row, ...]:
    """Return the rows of ``data.earlier``.

    Raises:
        DataError: a file is missing or malformed.
    """
    return tuple(row for file in files for row in read_rows(file, ColumnsConfig()))


def without_earlier(data: UnlearnData, earlier: Collection[Row]) -> UnlearnData:
    """Return the data without earlier rows among the retain rows and in the sets that utility is scored on.

    Case, white space, the Unicode normal form and invisible characters do not count. Forget rows stay, since a row may
    have to be forgotten again.

    Raises:
        DataError: no retain row is left.
    """
    forgotten = {normalized(row) for row in earlier}
    retain = without_rows(data.retain, forgotten)
    if not len(retain):
        raise DataError(
            "Earlier runs forgot every row of the retain set, so no row is left to retain: name a source with other "
            "rows to retain"
        )
    kept: Mapping[str, RowSet] = {
        name: rows if name.startswith(_FORGET_SETS) else without_rows(rows, forgotten)
        for name, rows in data.evaluation.items()
    }
    return replace(data, retain=retain, evaluation={name: rows for name, rows in kept.items() if len(rows)})


def without_rows(rows: RowSet, forgotten: Collection[tuple[str, str]]) -> RowSet:
    """Return a set of rows without those whose normal form is among ``forgotten``."""
    return rows.subset([index for index, row in enumerate(rows.rows) if normalized(row) not in forgotten])
