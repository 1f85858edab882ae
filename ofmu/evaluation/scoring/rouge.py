"""ROUGE of generated answers: recall as in TOFU (arXiv 2401.06121), and F1 as in MUSE (arXiv 2407.06460)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ofmu.evaluation.scoring.rouge_words import words_like


def rouge_l_recall(ground_truth: str, generated: str) -> float:
    """Return the share of the ground truth's stemmed words in its longest common subsequence with the generated text.

    The share lies between 0 and 1. :mod:`ofmu.evaluation.scoring.rouge_words` says what the words are. The table of
    rouge_score for the subsequence would take as many cells as the texts have words multiplied, so the subsequence is
    found here.
    """
    truth, words = _words(ground_truth, generated)
    return longest_common_subsequence(truth, words) / len(truth) if truth else 0.0


def rouge_l_f1(ground_truth: str, generated: str) -> float:
    """Return the harmonic mean of ROUGE-L recall and ROUGE-L precision, between 0 and 1."""
    truth, words = _words(ground_truth, generated)
    return 2 * longest_common_subsequence(truth, words) / (len(truth) + len(words)) if truth and words else 0.0


def rouge_1_recall(ground_truth: str, generated: str) -> float:
    """Return the share of the ground truth's stemmed words that the generated text holds, between 0 and 1."""
    truth, words = map(Counter, _words(ground_truth, generated))
    return (truth & words).total() / truth.total() if truth else 0.0


def _words(ground_truth: str, generated: str) -> tuple[list[str], list[str]]:
    """Return the words of both texts, which are split in the same way."""
    split = words_like(ground_truth)
    return split(ground_truth), split(generated)


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
