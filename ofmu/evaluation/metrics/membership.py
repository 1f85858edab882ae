"""Membership attacks: can forgotten rows be told from rows that no model has seen?

Each attack gives a row a number that is low where the row looks like a training row; the attack's strength is the
area under its ROC curve. Loss: Yeom et al. (arXiv 1709.01604); zlib and reference: Carlini et al. (2012.07805);
min-k: Shi et al. (2310.16789); min-k++: Zhang et al. (2404.02936); gradient norm: Wang et al. (2402.17012);
privacy leakage: MUSE, Shi et al. (2407.06460).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]

SHARE = 0.4
"""Share of an answer's tokens, the least likely ones, that min-k and min-k++ look at."""

_LEAST_DEVIATION = 1e-12


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """Return the chance that a member scores lower than another row, ties counted half: 0.5 tells nothing.

    This is the Mann-Whitney U statistic over its largest value, which is the area under the ROC curve.

    Raises:
        ValueError: a group is empty, or holds a NaN.
    """
    values = np.asarray([*members, *others], dtype=np.float64)
    if not len(members) or not len(others) or np.isnan(values).any():
        raise ValueError("an AUC needs at least one member and one other row, and no NaN")
    ranks = rankdata(values)
    lower = float(ranks[len(members) :].sum()) - len(others) * (len(others) + 1) / 2
    return lower / (len(members) * len(others))


def privacy_leakage(members_auc: float, reference_auc: float) -> float:
    """Return 100·((1 − AUC) − (1 − AUC_ref)) / (1 − AUC_ref), in percent.

    0 is what retraining leaves; below 0 the rows still look like members, above 0 more foreign than unseen rows.

    Raises:
        ValueError: the reference's AUC is 1, so that the ratio has no value.
    """
    if reference_auc >= 1:
        raise ValueError("the attack tells all forgotten rows from the holdout rows in the reference itself")
    return 100.0 * (reference_auc - members_auc) / (1.0 - reference_auc)


def min_k(log_probs: Floats, share: float = SHARE) -> float:
    """Return minus the mean of the lowest ``share`` of an answer's token log-probabilities (at least one)."""
    return -_lowest_mean(log_probs, share)


def min_k_plus(log_probs: Floats, means: Floats, deviations: Floats, share: float = SHARE) -> float:
    """Return :func:`min_k` of log-probabilities that are standardised by each position's whole distribution.

    ``means`` and ``deviations`` are those of log p under p itself, over the vocabulary. Where the model is wholly
    sure, the deviation is bounded from below.
    """
    return -_lowest_mean((log_probs - means) / np.maximum(deviations, _LEAST_DEVIATION), share)


def zlib_ratio(mean_loss: float, text: str) -> float:
    """Return the loss per byte of the zlib-compressed text, which makes up for how predictable any text is."""
    return mean_loss / len(zlib.compress(text.encode()))


def _lowest_mean(values: Floats, share: float) -> float:
    count = max(1, int(len(values) * share))
    return float(np.sort(values)[:count].mean())
