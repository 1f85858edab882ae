"""Rows as records of a JSONL file with the default columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from ofmu.data.rows import Row


def filled_fields(row: Row) -> dict[str, Any]:
    """Return the fields of a row that are not empty."""
    return {name: value for name, value in asdict(row).items() if value}


def record_of(row: Row) -> dict[str, Any]:
    """Return a row as a record of a file with the default columns."""
    fields = filled_fields(row)
    if not row.question:
        return {"text": row.answer}
    wrong = fields.pop("perturbed_answers", None)
    return fields | ({"perturbed_answer": list(wrong)} if wrong else {})


def json_line(record: Mapping[str, Any]) -> str:
    """Return a record as one line of a JSONL file."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def json_lines(rows: Iterable[Row]) -> str:
    """Return rows as the text of a JSONL file, which ``read_rows`` reads with the default columns."""
    return "".join(json_line(record_of(row)) for row in rows)
