"""ROUGE-L recall of generated answers, as in TOFU (Maini et al., arXiv 2401.06121)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l_recall(ground_truth: str, generated: str) -> float:
    """Return the share of the ground truth's stemmed words in its longest common subsequence with the generated text.

    The share lies between 0 and 1.
    """
    return float(_scorer().score(ground_truth, generated)["rougeL"].recall)
