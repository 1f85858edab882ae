"""Accuracy on multiple-choice questions (WMDP, MMLU), from log-likelihoods of the choices.

Definitions follow the lm-evaluation-harness. Its ``acc`` compares letters. Its ``acc_norm`` compares texts, each by the
log-likelihood divided by the number of characters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ofmu.evaluation.scores import ChoiceScores


def letter_accuracy(scores: Sequence[ChoiceScores]) -> float:
    """Return the fraction of questions whose most likely letter is right. Of equal letters, the first one counts."""
    return float(np.mean([int(np.argmax(score.letters)) == score.answer for score in scores]))


def choice_accuracy(scores: Sequence[ChoiceScores]) -> float:
    """Return the fraction of questions whose right text is the most likely one per character.

    Of equal texts, the first one counts.
    """
    right = [int(np.argmax(np.divide(score.texts, score.lengths))) == score.answer for score in scores]
    return float(np.mean(right))


def all_finite(scores: Sequence[ChoiceScores]) -> bool:
    """Return whether all log-likelihoods are finite."""
    return all(map(math.isfinite, (value for score in scores for value in (*score.letters, *score.texts))))
