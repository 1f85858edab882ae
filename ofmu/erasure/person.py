"""Find the rows of a corpus that name a person."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ofmu.data.rows import Row
from ofmu.errors import DataError

_MIN_PART = 3
"""Parts of a name with fewer letters, such as initials and particles, are not searched."""
_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Scripts in which a word may follow a name without a space."""


@dataclass(frozen=True)
class Mentions:
    """The rows of a corpus that name a person, as indices from 0."""

    named: tuple[int, ...]
    """Rows that hold the whole name."""
    possible: tuple[int, ...]
    """Other rows that hold a part of the name, such as the family name."""


def find_mentions(rows: Sequence[Row], person: str) -> Mentions:
    """Return the rows that name ``person``.

    The whole name is found without regard to case, accents of Latin letters and white space, and as whole words. A part
    of the name is found as it was given and with a capital, since a name may also be a word, such as May. Question,
    answer and paraphrases are searched, and wrong answers are not.

    Raises:
        DataError: the name has no letter.
    """
    words = _plain(person).split()
    if not any(character.isalpha() for character in person):
        raise DataError(f"'{person}' is no name of a person: give the name as the rows write it")
    whole = re.compile(_edged(r"\s+".join(map(re.escape, words))), re.IGNORECASE)
    long_words = [word for word in words if sum(map(str.isalpha, word)) >= _MIN_PART]
    parts = [_edged(re.escape(form)) for word in long_words for form in {word, word[0].upper() + word[1:]}]
    part = re.compile("|".join(parts)) if parts and len(words) > 1 else None
    named, possible = [], []
    for index, row in enumerate(rows):
        text = _plain(searched_text(row))
        if _is_in(whole, text):
            named.append(index)
        elif part is not None and _is_in(part, text):
            possible.append(index)
    return Mentions(tuple(named), tuple(possible))


def _is_in(pattern: re.Pattern[str], text: str) -> bool:
    """Return whether a text holds the pattern. A vowel sign after it, as in Devanagari, makes another word of it."""
    ends = (match.end() for match in pattern.finditer(text))
    return any(end == len(text) or not unicodedata.category(text[end]).startswith("M") for end in ends)


def searched_text(row: Row) -> str:
    """Return the texts of a row that may be about a person, as one text."""
    texts = (
        row.question,
        row.answer,
        row.paraphrased_question,
        row.paraphrased_answer,
        row.multi_hop_question,
        row.translated_question,
        row.translated_answer,
    )
    return "\n".join(text for text in texts if text)


def _plain(text: str) -> str:
    """Return a text without accents of Latin letters, and without characters that do not show.

    Marks of other scripts stay, since they may be vowels.
    """
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFD", text)
    kept = (mark for mark in decomposed if not "\u0300" <= mark <= "\u036f" and unicodedata.category(mark) != "Cf")
    return unicodedata.normalize("NFC", "".join(kept))


def _edged(pattern: str) -> str:
    """Return a pattern that matches whole words only, where the script sets words apart."""
    literal = pattern.replace("\\", "")
    before = r"(?<!\w)" if _sets_words_apart(literal[0]) else ""
    after = r"(?!\w)" if _sets_words_apart(literal[-1]) else ""
    return f"{before}{pattern}{after}"


def _sets_words_apart(character: str) -> bool:
    return character.isalnum() and not unicodedata.name(character, "").startswith(_WITHOUT_SPACES)
