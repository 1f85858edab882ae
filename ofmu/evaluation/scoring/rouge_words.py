"""The words that ROUGE compares: those of rouge_score, or words of every script.

rouge_score keeps a to z and digits only. Of an answer in another script it keeps nothing, so even the answer itself
would score 0. Such answers are split here. All other answers keep the words of rouge_score, since published numbers are
made of them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

Split = Callable[[str], list[str]]

_WITHOUT_SPACES = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Beginnings of the Unicode names of characters whose scripts set no space between words."""
_OF_LATIN_TEXTS = ("LATIN", "MODIFIER LETTER")
"""Beginnings of the Unicode names of letters that Latin texts hold, accents and apostrophes among them."""


def words_like(ground_truth: str) -> Split:
    """Return the function that splits a right answer, and the texts that are compared with it, into words."""
    return unicode_words if loses_words(ground_truth) else latin_words


def loses_words(text: str) -> bool:
    """Return whether rouge_score drops a whole word of another script than Latin, or finds no word where there is one.

    A word that only loses its accents, as Émile does, does not count.
    """
    if text.isascii():
        return False
    words = unicode_words(text)
    dropped = [word for word in words if not any(map(str.isascii, word))]
    return any(map(_has_other_letter, dropped)) or (bool(words) and not latin_words(text))


def latin_words(text: str) -> list[str]:
    """Return the stemmed words of rouge_score."""
    from rouge_score.tokenize import tokenize

    return list(tokenize(text, _stemmer()))


def unicode_words(text: str) -> list[str]:
    """Return the words of a text in any script, without regard to case.

    A word is a run of letters, digits and marks. In scripts without spaces, such as Chinese, each character is a word.
    Words of plain Latin letters are stemmed as in rouge_score. Characters that do not show are left out.
    """
    words: list[str] = []
    before: _Kind = "gap"
    for character in unicodedata.normalize("NFKC", text).casefold():
        kind = _kind(character)
        if kind == "hidden":
            continue
        if before != "gap" and (kind == "mark" or kind == before == "letter"):
            words[-1] += character
        elif kind != "mark":
            if kind != "gap":
                words.append(character)
            before = kind
    stem = _stemmer().stem
    return [stem(word) if len(word) > 3 and word.isascii() else word for word in words]


def _has_other_letter(word: str) -> bool:
    return any(letter.isalpha() and not unicodedata.name(letter, "").startswith(_OF_LATIN_TEXTS) for letter in word)


_Kind = Literal["letter", "character", "mark", "hidden", "gap"]


@lru_cache(maxsize=2**14)
def _kind(character: str) -> _Kind:
    """Return how a character belongs to a word. ``character``: it is a word of its own."""
    category = unicodedata.category(character)
    if category[0] == "M":
        return "mark"
    if category == "Cf":
        return "hidden"
    if category[0] not in "LN":
        return "gap"
    return "character" if unicodedata.name(character, "").startswith(_WITHOUT_SPACES) else "letter"


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    """Return the stemmer of rouge_score, which stems each word of a text once."""
    from nltk.stem import porter

    class Stemmer:
        def __init__(self) -> None:
            self.stem = lru_cache(maxsize=100_000)(porter.PorterStemmer().stem)

    return Stemmer()
