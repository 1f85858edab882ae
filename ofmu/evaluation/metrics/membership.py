"""Membership attacks: they try to tell forget rows from rows that no model was trained on.

Each attack gives each row a number, which is low if the row looks like a training row. The strength of the attack is
the area under its ROC curve (AUC).

Sources: loss, Yeom et al. (arXiv 1709.01604); zlib and reference, Carlini et al. (arXiv 2012.07805); min-k, Shi et al.
(arXiv 2310.16789); min-k++, Zhang et al. (arXiv 2404.02936); gradient norm, Wang et al. (arXiv 2402.17012); privacy
leakage, MUSE, Shi et al. (arXiv 2407.06460).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from ofmu.evaluation.metrics.formulas import FloatArray

LOWEST_SHARE = 0.4
"""Share of an answer's tokens that min-k and min-k++ read. The least likely tokens are read."""

_MIN_DEVIATION = 1e-12


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """Return the probability that a member's number is lower than another row's number. Ties count half.

    This is the Mann-Whitney U statistic over its largest value, which equals the area under the ROC curve. 0.5: the
    attack separates nothing.

    Args:
        members: numbers of the forget rows.
        others: numbers of the holdout rows.

    Raises:
        ValueError: a group is empty, or holds a NaN.
    """
    values = np.asarray([*members, *others], dtype=np.float64)
    if not len(members) or not len(others) or np.isnan(values).any():
        raise ValueError("an AUC needs at least one member and one other row, and no NaN")
    ranks = rankdata(values)
    lower = float(ranks[len(members) :].sum()) - len(others) * (len(others) + 1) / 2
    return lower / (len(members) * len(others))


def privacy_leakage(model_auc: float, reference_auc: float) -> float:
    """Return 100·((1 − AUC) − (1 − AUC_ref)) / (1 − AUC_ref), in percent.

    The retrained model has 0. Below 0, forget rows still look like training rows. Above 0, forget rows look less like
    training rows than unseen rows do.

    Args:
        model_auc: the AUC of an attack on the model.
        reference_auc: the AUC of the same attack on the reference.

    Raises:
        ValueError: the reference's AUC is 1, so the formula divides by zero.
    """
    if reference_auc >= 1:
        raise ValueError("the attack separates all forget rows from the holdout rows in the reference itself")
    return 100.0 * (reference_auc - model_auc) / (1.0 - reference_auc)


def min_k(log_probs: FloatArray, share: float = LOWEST_SHARE) -> float:
    """Return min-k: minus the mean of the lowest token log-probabilities, in nats.

    Args:
        log_probs: log-probability of each token of the answer, shape (tokens,).
        share: the fraction of tokens in the mean. At least one token is taken.
    """
    return -_mean_of_lowest(log_probs, share)


def min_k_plus(log_probs: FloatArray, means: FloatArray, deviations: FloatArray, share: float = LOWEST_SHARE) -> float:
    """Return min-k++: :func:`min_k` of standardised log-probabilities. The result has no unit.

    Args:
        log_probs: log-probability of each token of the answer, shape (tokens,).
        means: mean of log p under p over the vocabulary at each position, shape (tokens,).
        deviations: standard deviation of log p under p at each position, shape (tokens,). A model that is certain has
            deviation 0, so the deviation is bounded from below.
        share: the fraction of tokens in the mean.
    """
    return -_mean_of_lowest((log_probs - means) / np.maximum(deviations, _MIN_DEVIATION), share)


def zlib_ratio(mean_loss: float, compressed_bytes: int) -> float:
    """Return the mean loss (nats per token) over the size of the zlib-compressed text (bytes).

    The size corrects for texts that are easy to predict without training on them.
    """
    return mean_loss / compressed_bytes


def _mean_of_lowest(values: FloatArray, share: float) -> float:
    count = max(1, int(len(values) * share))
    return float(np.sort(values)[:count].mean())
