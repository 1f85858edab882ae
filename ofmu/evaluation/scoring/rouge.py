"""ROUGE of generated answers: recall as in TOFU (arXiv 2401.06121), and F1 as in MUSE (arXiv 2407.06460)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    """Return the stemmer of rouge_score, which stems each word of a text once."""
    from nltk.stem import porter

    class Stemmer:
        def __init__(self) -> None:
            self.stem = lru_cache(maxsize=100_000)(porter.PorterStemmer().stem)

    return Stemmer()


def _words(text: str) -> list[str]:
    from rouge_score.tokenize import tokenize

    return list(tokenize(text, _stemmer()))


def rouge_l_recall(ground_truth: str, generated: str) -> float:
    """Return the share of the ground truth's stemmed words in its longest common subsequence with the generated text.

    The share lies between 0 and 1. The words are those of rouge_score. Its table for the subsequence would take as many
    cells as the texts have words multiplied, so the subsequence is found here.
    """
    truth = _words(ground_truth)
    return longest_common_subsequence(truth, _words(generated)) / len(truth) if truth else 0.0


def rouge_l_f1(ground_truth: str, generated: str) -> float:
    """Return the harmonic mean of ROUGE-L recall and ROUGE-L precision, between 0 and 1."""
    truth, words = _words(ground_truth), _words(generated)
    return 2 * longest_common_subsequence(truth, words) / (len(truth) + len(words)) if truth and words else 0.0


def rouge_1_recall(ground_truth: str, generated: str) -> float:
    """Return the share of the ground truth's stemmed words that the generated text holds, between 0 and 1."""
    truth, words = Counter(_words(ground_truth)), Counter(_words(generated))
    return (truth & words).total() / truth.total() if truth else 0.0


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by the bits of one integer (Hyyrö, AWOCA 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(right):
        places[word] = places.get(word, 0) | 1 << place
    mask = (1 << len(right)) - 1
    unmatched = mask
    for word in left:
        matched = unmatched & places.get(word, 0)
        unmatched = (unmatched + matched | unmatched - matched) & mask
    return len(right) - unmatched.bit_count()
