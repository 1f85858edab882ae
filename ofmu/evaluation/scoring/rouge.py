"""ROUGE-L recall, as TOFU measures generated answers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l_recall(ground_truth: str, generated: str) -> float:
    """Return the share of the ground truth's stemmed words that the generated text holds in order (0 to 1)."""
    return float(_scorer().score(ground_truth, generated)["rougeL"].recall)
