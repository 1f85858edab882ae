"""How fluent generated texts are, without a judge model: variety, repetition and length, over whitespace words.

Variety is distinct-n (Li et al., arXiv 1510.03055), here over the n-grams of all texts together; repetition is
seq-rep-n (Welleck et al., arXiv 1908.04319), the mean over texts.
"""

from __future__ import annotations

from collections.abc import Sequence

REPEATED = 4
"""n of the repetition share, as its authors chose it."""

Words = tuple[str, ...]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Return the number of different n-grams over the number of n-grams in all texts; None where there is none."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(texts: Sequence[str], n: int = REPEATED) -> float | None:
    """Return the mean over texts of 1 − different n-grams / n-grams; None where no text has n words.

    0 is a text that never repeats itself, near 1 one that is stuck.
    """
    found = [grams for text in texts if (grams := _grams(text, n))]
    return sum(1 - len(set(grams)) / len(grams) for grams in found) / len(found) if found else None


def mean_words(texts: Sequence[str]) -> float | None:
    """Return the mean number of words of a text; None without texts."""
    return sum(len(text.split()) for text in texts) / len(texts) if texts else None


def _grams(text: str, n: int) -> list[Words]:
    words = text.casefold().split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
