"""Pydantic's reasons for refusing a value, in the words of somebody who writes a config file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_TYPES = {
    "bool": "true or false",
    "dict": "keys with values",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "mapping": "keys with values",
    "model": "keys with values",
    "path": "a path",
    "string": "text",
    "tuple": "a list",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def refusal(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return why a value was refused: ``it must be …``, with all types that the setting takes.

    Args:
        errors: pydantic's errors for one value, one for each type that was tried.
    """
    wanted = [_wanted(error) for error in errors]
    known = dict.fromkeys(words for words in wanted if words is not None)
    others = dict.fromkeys(
        str(error["msg"])[:1].lower() + str(error["msg"])[1:]
        for error, words in zip(errors, wanted, strict=True)
        if words is None
    )
    parts = [f"it must be {' or '.join(known)}"] if known else []
    return ", or ".join([*parts, *others])


def _wanted(error: Mapping[str, Any]) -> str | None:
    """Return what the value must be; None if pydantic's own sentence is needed."""
    kind, context = str(error["type"]), error.get("ctx") or {}
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        bound = context[name]
        return f"{words} {bound:g}" if isinstance(bound, float) else f"{words} {bound}"
    if kind == "literal_error":
        return str(context["expected"])
    if kind == "finite_number":
        return "a finite number"
    stem = kind.removesuffix("_from_float").removesuffix("_parsing").removesuffix("_type")
    return _TYPES.get(stem) if stem != kind else None
