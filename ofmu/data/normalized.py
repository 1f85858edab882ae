"""The form of a row that is equal for rows that look the same."""

from __future__ import annotations

import unicodedata

from ofmu.data.rows import Row


def normalized(row: Row) -> tuple[str, str]:
    """Return question and answer in a form that is equal for texts that look the same."""
    return _caseless(row.question), _caseless(row.answer)


def letters_and_digits(texts: tuple[str, str]) -> tuple[str, str]:
    """Return the result of :func:`normalized` without white space and punctuation."""
    question, answer = texts
    return _without_punctuation(question), _without_punctuation(answer)


def _without_punctuation(text: str) -> str:
    # M: combining marks, which part ë from e.
    return "".join(each for each in text if each.isalnum() or unicodedata.category(each).startswith("M"))


def _caseless(text: str) -> str:
    """Return a text without case, with single spaces, in one normal form, and without characters that do not show.

    This is the canonical caseless match of the Unicode standard (section 3.13, D145). A compatible form such as ² stays
    another text than 2.
    """
    if text.isascii():
        return " ".join(text.casefold().split())
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())
    # Cf: zero-width spaces and joiners, the byte order mark, soft hyphens, marks of direction.
    shown = "".join(character for character in folded if not _is_invisible(character))
    return " ".join(shown.split())


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"  # variation selectors
