"""Fluency of generated texts without a judge model: variety, repetition and length. Words are split at whitespace.

Variety is distinct-n (Li et al., arXiv 1510.03055), over the n-grams of all texts together. Repetition is seq-rep-n
(Welleck et al., arXiv 1908.04319), as the mean over texts.
"""

from __future__ import annotations

from collections.abc import Sequence

REPETITION_N = 4
"""The n of seq-rep-n, as in Welleck et al."""

NGram = tuple[str, ...]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Return distinct-n: the number of different n-grams over the number of all n-grams.

    None: no text has n words.
    """
    ngrams = [ngram for text in texts for ngram in _ngrams(text, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def repetition(texts: Sequence[str], n: int = REPETITION_N) -> float | None:
    """Return the mean over texts of seq-rep-n, which is 1 − different n-grams / n-grams.

    A text without repetition has 0. A text that repeats one phrase is near 1. Texts with fewer than n words are left
    out. None: no text has n words.
    """
    texts_ngrams = [ngrams for text in texts if (ngrams := _ngrams(text, n))]
    if not texts_ngrams:
        return None
    return sum(1 - len(set(ngrams)) / len(ngrams) for ngrams in texts_ngrams) / len(texts_ngrams)


def mean_words(texts: Sequence[str]) -> float | None:
    """Return the mean number of words per text. None: there is no text."""
    return sum(len(text.split()) for text in texts) / len(texts) if texts else None


def _ngrams(text: str, n: int) -> list[NGram]:
    words = text.casefold().split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
