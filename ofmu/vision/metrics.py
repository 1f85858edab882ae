"""The field's metrics of image unlearning, in percent: pure functions of per-row scores.

Definitions: Jia et al. (arXiv 2304.04934) and Fan et al. (SalUn, arXiv 2310.12508), membership
inference as their code computes it. Their modified entropy, whose implementation takes log p where log(1 − p)
belongs, is not among them.
"""

from __future__ import annotations

import numpy as np

from ofmu.evaluation.metrics.formulas import FloatArray
from ofmu.evaluation.metrics.summary import Metrics
from ofmu.vision.scores import ImageScores, SetScores, require_same_images

FIELD_METRICS = ("unlearning_accuracy", "remaining_accuracy", "testing_accuracy", "mia_efficacy")
PERCENT = 100.0


def accuracy(scores: SetScores) -> float:
    """Return the share of rows whose predicted class is their own, in percent."""
    return PERCENT * float(np.mean(np.asarray(scores.predicted) == np.asarray(scores.labels)))


def mia_efficacy(members: FloatArray, others: FloatArray, forget: FloatArray, seed: int) -> float:
    """Return the share of forget rows that a membership classifier calls non-members, in percent.

    The classifier is an RBF-SVC (C 3, γ 1 / number of features) on the probability of the true class. It learns from
    retain rows as members and test rows as non-members, equally many of both, the larger set drawn by ``seed``.

    Args:
        members: confidence of the retain rows, shape (retain rows,).
        others: confidence of the test rows, shape (test rows,).
        forget: confidence of the forget rows, shape (forget rows,).
        seed: draws the rows of the larger set.
    """
    from sklearn.svm import SVC

    count = min(len(members), len(others))
    generator = np.random.default_rng(seed)
    shadow = np.concatenate([_drawn(members, count, generator), _drawn(others, count, generator)])
    labels = np.repeat([1, 0], count)
    attack = SVC(C=3.0, kernel="rbf", gamma="auto").fit(shadow[:, None], labels)
    return PERCENT * float(np.mean(attack.predict(forget[:, None]) == 0))


def _drawn(values: FloatArray, count: int, generator: np.random.Generator) -> FloatArray:
    return values if len(values) == count else values[generator.permutation(len(values))[:count]]


def metrics_of_images(scores: ImageScores, reference: ImageScores | None = None) -> Metrics:
    """Compute every metric of ``scores``, and the gaps to the retrained model's where ``reference`` has them.

    ``average_gap`` is the mean of |difference to retraining| over the four metrics of the field.

    Raises:
        ReferenceMismatchError: the reference covers other rows.
    """
    if reference is not None:
        require_same_images(reference, scores.data_hash, scores.model)
    values, reasons = _field_metrics(scores)
    expected, why = ({}, {}) if reference is None else _field_metrics(reference)
    gaps: list[float | None] = []
    for name in FIELD_METRICS:
        own, theirs = values[name], expected.get(name)
        gap = None if own is None or theirs is None else abs(own - theirs)
        values[f"{name}_gap"] = gap
        gaps.append(gap)
        if gap is None:
            missing = "there is no retrained reference" if reference is None else f"the reference's {why.get(name)}"
            reasons[f"{name}_gap"] = reasons.get(name, missing)
    known = [gap for gap in gaps if gap is not None]
    values["average_gap"] = sum(known) / len(known) if len(known) == len(gaps) else None
    if values["average_gap"] is None:
        reasons["average_gap"] = next(reasons[f"{name}_gap"] for name in FIELD_METRICS if f"{name}_gap" in reasons)
    return Metrics(values=values, reasons=reasons)


def _field_metrics(scores: ImageScores) -> tuple[dict[str, float | None], dict[str, str]]:
    forget, retain, test = (scores.sets[name] for name in ("forget", "retain", "test"))
    confidence = {name: np.asarray(rows.confidence, dtype=np.float64) for name, rows in scores.sets.items()}
    broken = [name for name, values in confidence.items() if not np.isfinite(values).all()]
    if broken:
        reason = f"the model's outputs on the {broken[0]} images are not finite"
        return dict.fromkeys(FIELD_METRICS), dict.fromkeys(FIELD_METRICS, reason)
    values: dict[str, float | None] = {
        "unlearning_accuracy": PERCENT - accuracy(forget),
        "remaining_accuracy": accuracy(retain),
        "testing_accuracy": accuracy(test),
        "mia_efficacy": mia_efficacy(confidence["retain"], confidence["test"], confidence["forget"], scores.seed),
    }
    return values, {}
