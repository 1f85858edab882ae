"""The facts of rows, from a file beside the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ofmu.data.config import ColumnsConfig
from ofmu.data.files import read_rows
from ofmu.data.rows import Row, UnlearnData
from ofmu.errors import DataError


def rows_with_facts(data: UnlearnData, path: str | None) -> tuple[Row, ...]:
    """Return the forget rows on whose facts the depths are measured, with the entities of a file if there is one.

    Raises:
        DataError: see :func:`with_entities`.
    """
    rows = data.evaluation.get("forget", data.forget).rows
    return rows if path is None else with_entities(rows, path)


def with_entities(rows: Sequence[Row], path: str) -> tuple[Row, ...]:
    """Return the rows with the entities that a file gives. Question and answer tell which row is meant.

    Args:
        rows: the forget rows.
        path: a file of rows with the columns ``question``, ``answer`` and ``entity``.

    Raises:
        DataError: see :func:`read_entities`; or none of the file's rows is a forget row.
    """
    entities = read_entities(path)
    if not any((row.question, row.answer) in entities for row in rows):
        raise DataError(
            f"No row of {path}, which evaluation.entities names, is a forget row: its questions and answers must be "
            "those of the forget rows"
        )
    return tuple(replace(row, entity=entities.get((row.question, row.answer), row.entity)) for row in rows)


def read_entities(path: str) -> dict[tuple[str, str], str]:
    """Return the entities of a file, by question and answer.

    Raises:
        DataError: the file cannot be read, or a row of it has no entity.
    """
    entities: dict[tuple[str, str], str] = {}
    for number, row in enumerate(read_rows(path, ColumnsConfig()), start=1):
        if row.entity is None:
            raise DataError(f"Row {number} of {path} has no column 'entity': copy the fact from the answer there")
        entities[row.question, row.answer] = row.entity
    return entities
