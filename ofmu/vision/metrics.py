"""Metrics of image unlearning, in percent. All of them are functions of per-row scores.

Definitions: Jia et al. (arXiv 2304.04934) and Fan et al. (SalUn, arXiv 2310.12508). Membership inference follows their
code. Their modified entropy is left out, since their code takes log p where the definition has log(1 − p).
"""

from __future__ import annotations

import numpy as np

from ofmu.evaluation.metrics.formulas import FloatArray
from ofmu.evaluation.metrics.summary import Metrics
from ofmu.vision.scores import ImageScores, SetScores, check_same_images

FIELD_METRICS = ("unlearning_accuracy", "remaining_accuracy", "testing_accuracy", "mia_efficacy")
"""The four metrics of Jia et al. and Fan et al."""
PERCENT = 100.0


def accuracy(scores: SetScores) -> float:
    """Return the accuracy in percent: 100 · mean(predicted class = label)."""
    return PERCENT * float(np.mean(np.asarray(scores.predicted) == np.asarray(scores.labels)))


def mia_efficacy(members: FloatArray, non_members: FloatArray, forget: FloatArray, seed: int) -> float:
    """Return the percentage of forget rows that a membership classifier predicts as non-members.

    The classifier is a support-vector machine with an RBF kernel (C = 3, γ = 1 / number of features). Its only feature
    is the probability of the true class. It is trained on equally many members and non-members.

    Args:
        members: probability of the true class of the retain rows, shape (retain rows,).
        non_members: probability of the true class of the test rows, shape (test rows,).
        forget: probability of the true class of the forget rows, shape (forget rows,).
        seed: draws the training rows from the larger of the two sets.
    """
    # Scikit-learn takes a second to import, and only this metric needs it.
    from sklearn.svm import SVC

    count = min(len(members), len(non_members))
    generator = np.random.default_rng(seed)
    features = np.concatenate([_sample(members, count, generator), _sample(non_members, count, generator)])
    labels = np.repeat([1, 0], count)
    classifier = SVC(C=3.0, kernel="rbf", gamma="auto").fit(features[:, None], labels)
    return PERCENT * float(np.mean(classifier.predict(forget[:, None]) == 0))


def _sample(values: FloatArray, count: int, generator: np.random.Generator) -> FloatArray:
    return values if len(values) == count else values[generator.permutation(len(values))[:count]]


def metrics_of_images(scores: ImageScores, reference: ImageScores | None = None) -> Metrics:
    """Return every metric of ``scores``.

    The gap of a metric is |value − value of the reference|. ``average_gap`` is the mean of the four gaps (Fan et al.,
    arXiv 2310.12508). Without a reference the gaps are None.

    Args:
        scores: scores of the model.
        reference: scores of the retrained model.

    Raises:
        ReferenceMismatchError: the reference covers other images.
    """
    if reference is not None:
        check_same_images(reference, scores.data_hash, scores.model)
    values, reasons = _field_metrics(scores)
    expected, expected_reasons = ({}, {}) if reference is None else _field_metrics(reference)
    gaps: list[float | None] = []
    for name in FIELD_METRICS:
        own, retrained = values[name], expected.get(name)
        gap = None if own is None or retrained is None else abs(own - retrained)
        values[f"{name}_gap"] = gap
        gaps.append(gap)
        if gap is None:
            without = "there is no retrained reference"
            if reference is not None:
                without = f"the reference has no such value: {expected_reasons.get(name)}"
            reasons[f"{name}_gap"] = reasons.get(name, without)
    computed = [gap for gap in gaps if gap is not None]
    values["average_gap"] = sum(computed) / len(computed) if len(computed) == len(gaps) else None
    if values["average_gap"] is None:
        reasons["average_gap"] = next(reasons[f"{name}_gap"] for name in FIELD_METRICS if f"{name}_gap" in reasons)
    return Metrics(values=values, reasons=reasons)


def _field_metrics(scores: ImageScores) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return the four metrics of the field, and the reasons of missing metrics."""
    forget, retain, test = (scores.sets[name] for name in ("forget", "retain", "test"))
    confidence = {name: np.asarray(rows.confidence, dtype=np.float64) for name, rows in scores.sets.items()}
    non_finite = [name for name, values in confidence.items() if not np.isfinite(values).all()]
    if non_finite:
        reason = f"the model's outputs on the {non_finite[0]} images are not finite"
        return dict.fromkeys(FIELD_METRICS), dict.fromkeys(FIELD_METRICS, reason)
    values: dict[str, float | None] = {
        "unlearning_accuracy": PERCENT - accuracy(forget),
        "remaining_accuracy": accuracy(retain),
        "testing_accuracy": accuracy(test),
        "mia_efficacy": mia_efficacy(confidence["retain"], confidence["test"], confidence["forget"], scores.seed),
    }
    return values, {}
