"""Lists of texts that a file holds as one text, in the spelling of JSON, of Python or of NumPy."""

from __future__ import annotations

import json
import re
from typing import Any

_OPENING = re.compile(r"""\s*(?:\[.*\]\s*\Z|[\[({]\s*[bru]?['"]|array\()""", re.DOTALL)
"""The start of a list, a tuple, a set or an array; or brackets around the whole text."""
_LITERAL = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""", re.DOTALL)
_SEPARATOR = re.compile(r"\s*,\s*|\s+")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}


def looks_like_list(text: str) -> bool:
    """Return whether a text was written from a list. Such a text is never one answer.

    ``[…]`` counts, and so does an opening bracket before a quotation mark. ``(unknown)`` does not count.
    """
    return _OPENING.match(text) is not None


def parse_text_list(text: str) -> list[Any] | None:
    """Return the values of a list that was written as text; None if the spelling is not known.

    The spellings are JSON, ``['a', 'b']`` and ``('a', 'b')`` of Python, and ``['a' 'b']`` of NumPy. Python itself would
    read NumPy's spelling as the one text ``ab``, so this function has its own parser. The parser runs no code.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _parse_quoted(text.strip())
    return value if isinstance(value, list) else None


def _parse_quoted(text: str) -> list[Any] | None:
    """Return the quoted texts between brackets. All separators are commas, or all are white space."""
    if text[:1] + text[-1:] not in ("[]", "()"):
        return None
    inner, position = text[1:-1].strip(), 0
    texts: list[Any] = []
    separators: set[str] = set()
    while position < len(inner):
        literal = _LITERAL.match(inner, position)
        content = None if literal is None else _unescaped(literal[1] if literal[2] is None else literal[2])
        if literal is None or content is None:
            return None
        texts.append(content)
        separator = _SEPARATOR.match(inner, literal.end())
        position = literal.end() if separator is None else separator.end()
        if separator is not None:
            separators.add(separator[0].strip())
        elif position < len(inner):
            return None
    # White space is NumPy's separator, and NumPy writes square brackets. Python joins texts without a comma.
    return texts if separators in (set(), {","}) or (separators == {""} and text[0] == "[") else None


def _unescaped(content: str) -> str | None:
    """Return a literal's text; None for an escape that Python's repr does not write."""

    def character(match: re.Match[str]) -> str:
        digits = match[1] or match[2] or match[3]
        return chr(int(digits, 16)) if digits else _ESCAPED[match[4]]

    try:
        return _ESCAPE.sub(character, content)
    except (KeyError, ValueError, OverflowError):
        return None
