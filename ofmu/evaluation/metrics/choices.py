"""Accuracy on multiple-choice questions (WMDP, MMLU), from the likelihoods of the choices' letters and texts.

Definitions follow the lm-evaluation-harness: ``acc`` over letters, and ``acc_norm``, the log-likelihood divided by
the choice's number of characters, over texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceScores:
    """One question: log-likelihoods (nats) of its choices' letters and texts, and the texts' characters."""

    answer: int
    letters: tuple[float, ...]
    texts: tuple[float, ...]
    lengths: tuple[int, ...]

    def to_json(self) -> list[Any]:
        """Return plain JSON values; a likelihood that is not finite becomes null."""
        numbers = [[value if math.isfinite(value) else None for value in part] for part in (self.letters, self.texts)]
        return [self.answer, *numbers, list(self.lengths)]

    @classmethod
    def from_json(cls, content: list[Any]) -> ChoiceScores:
        """Read what :meth:`to_json` made."""
        answer, *numbers, lengths = content
        letters, texts = (tuple(math.nan if value is None else float(value) for value in part) for part in numbers)
        return cls(answer=int(answer), letters=letters, texts=texts, lengths=tuple(map(int, lengths)))


def letter_accuracy(scores: Sequence[ChoiceScores]) -> float:
    """Return the share of questions whose right letter is the likeliest; ties go to the first."""
    return float(np.mean([int(np.argmax(score.letters)) == score.answer for score in scores]))


def choice_accuracy(scores: Sequence[ChoiceScores]) -> float:
    """Return the share of questions whose right text is the likeliest per character; ties go to the first."""
    found = [int(np.argmax(np.divide(score.texts, score.lengths))) == score.answer for score in scores]
    return float(np.mean(found))


def is_finite(scores: Sequence[ChoiceScores]) -> bool:
    """Return whether all log-likelihoods are finite."""
    return all(map(math.isfinite, (value for score in scores for value in (*score.letters, *score.texts))))
