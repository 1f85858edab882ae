"""Which column a file's row most likely means, where a named column is missing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ofmu.data.config import ColumnsConfig

_OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "prompt", "instruction", "query", "input", "problem", "user"),
    "answer": ("answer", "completion", "response", "output", "target", "solution", "reply", "assistant"),
    "text": ("text", "content", "document", "body", "passage"),
}
"""Names that data sets give to a column, the most telling first."""
_CONVERSATIONS = ("messages", "conversations", "conversation")
_TYPING_ERROR = 0.7
"""Least similarity, from 0 to 1, of two names that differ by a typing error."""


def column_hint(key: str, name: str, record: Mapping[str, Any], columns: ColumnsConfig) -> str:
    """Return what to set or to write for a row that lacks a column.

    Args:
        key: the setting of ``data.columns`` that names the missing column.
        name: the missing column.
        record: the row, by column.
        columns: the columns that the config names.
    """
    found = [str(column) for column in record]
    typing_error = difflib.get_close_matches(name, found, n=1, cutoff=_TYPING_ERROR)
    if typing_error:
        return f"did you mean '{typing_error[0]}'? Rename it, or set data.columns.{key}={typing_error[0]}"
    conversation = _named(_CONVERSATIONS, found)
    if conversation is not None:
        return f"write each exchange of '{conversation}' as a row with the columns 'question' and 'answer'"
    missing = [each for each in ("question", "answer") if getattr(columns, each) not in record]
    others = {each: _named(_OTHER_NAMES[each], found) for each in missing}
    if others and all(others.values()):
        return f"set {' and '.join(f'data.columns.{each}={other}' for each, other in others.items())}"
    text = _named(_OTHER_NAMES["text"], found)
    if len(missing) == 1 and missing[0] == key and text is None:
        return (
            f"write its {key} there, or remove the row; its columns are {', '.join(found)}, and if one of them holds "
            f"the {key}, set data.columns.{key}"
        )
    if text is not None:
        return f"if its rows are plain text, set data.columns.text={text}"
    return (
        f"its columns are {', '.join(found) or 'none'}; set data.columns.question and data.columns.answer, or "
        "data.columns.text for plain text"
    )


def _named(names: Iterable[str], found: Iterable[str]) -> str | None:
    """Return the first column that has one of the names, in any spelling of capitals; None if there is none."""
    by_lower = {column.lower(): column for column in found}
    return next((by_lower[name] for name in names if name in by_lower), None)
