"""From per-row scores to the metrics that are reported, each with its reason where it cannot be computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ofmu.evaluation import metrics as formulas
from ofmu.evaluation.matching import require_match
from ofmu.evaluation.names import FORGET, GENERAL_SETS, KINDS, SETS, UTILITY_SETS, TruthRatio
from ofmu.evaluation.scores import RowScores, Scores

QUALITY = ("ks_statistic", "forget_quality", "log10_forget_quality", "forget_quality_rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What an evaluation reports; a metric that could not be computed is None and has a reason, never 0 or 1."""

    values: dict[str, float | None]
    reasons: dict[str, str]
    utility_components: tuple[str, ...] = ()
    """The metrics whose harmonic mean is ``model_utility``: nine where the data has all sets, none for images."""
    truth_ratio: TruthRatio | None = None
    """None for images, which have none."""

    def to_json(self) -> dict[str, Any]:
        """Return a mapping of plain JSON values."""
        return {
            "metrics": dict(self.values),
            "reasons": dict(self.reasons),
            "utility_components": list(self.utility_components),
            "truth_ratio": self.truth_ratio,
        }


class _AbsentError(Exception):
    """The data does not hold what a metric needs."""


class _NonFiniteError(Exception):
    """The data is there, but the model gave NaN or infinity on it."""


def metrics_of(scores: Scores, reference: Scores | None = None) -> Metrics:
    """Compute every metric of ``scores``; forget quality is taken against ``reference``.

    Raises:
        ReferenceMismatchError: the reference covers other rows, or is under another truth-ratio definition.
    """
    if reference is not None:
        require_match(scores, reference)
    table = _Table()
    table.add_quality(scores, reference)
    for name in SETS:
        for kind in KINDS:
            table.add(f"{name}_{kind}", partial(_COMPONENTS[kind], scores, name))
    used = table.add_utility([f"{name}_{kind}" for name in UTILITY_SETS for kind in KINDS])
    for metric in ("extraction_strength", "exact_memorization"):
        table.add(metric, partial(_row_mean, scores, FORGET, metric))
    return Metrics(values=table.values, reasons=table.reasons, utility_components=used, truth_ratio=scores.truth_ratio)


@dataclass
class _Table:
    values: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    """Metrics that a non-finite score spoilt, as opposed to those for which the data holds nothing."""

    def add(self, name: str, compute: Callable[[], float]) -> None:
        try:
            self.values[name] = compute()
        except _AbsentError as reason:
            self.values[name], self.reasons[name] = None, str(reason)
        except _NonFiniteError as reason:
            self.values[name], self.reasons[name] = None, str(reason)
            self.broken.append(name)

    def add_quality(self, scores: Scores, reference: Scores | None) -> None:
        try:
            if reference is None:
                raise _AbsentError("no reference was given")
            quality = formulas.forget_quality(_log_ratios(scores, FORGET), _log_ratios(reference, FORGET))
        except (_AbsentError, _NonFiniteError) as reason:
            self.values.update(dict.fromkeys(QUALITY, None))
            self.reasons.update(dict.fromkeys(QUALITY, str(reason)))
            return
        numbers = (quality.statistic, quality.p_value, quality.log10_p_value, float(quality.rows))
        self.values.update(zip(QUALITY, numbers, strict=True))

    def add_utility(self, components: Sequence[str]) -> tuple[str, ...]:
        """Add the harmonic mean of those components that the data has; one spoilt component spoils it."""
        used = tuple(name for name in components if self.values[name] is not None)
        spoilt = [name for name in components if name in self.broken]
        if spoilt:
            self.values["model_utility"] = None
            self.reasons["model_utility"] = f"{', '.join(spoilt)} could not be computed: {self.reasons[spoilt[0]]}"
        elif not used:
            self.values["model_utility"] = None
            self.reasons["model_utility"] = "the data has no evaluation set other than forget"
        else:
            self.values["model_utility"] = formulas.harmonic_mean([self.values[name] or 0.0 for name in used])
        return used


def _probability(scores: Scores, name: str) -> float:
    rows = _rows(scores, name)
    right = _finite(scores, name, [row.answer.mean for row in rows])
    if name not in GENERAL_SETS:
        return formulas.probability(right)
    return formulas.normalised_probability(right, _wrong(scores, name, rows))


def _rouge(scores: Scores, name: str) -> float:
    return _row_mean(scores, name, "rouge")


def _truth_ratio(scores: Scores, name: str) -> float:
    log_ratios = _log_ratios(scores, name)
    if name == FORGET:
        return formulas.forget_truth_ratio(log_ratios)
    return formulas.utility_truth_ratio(log_ratios)


_COMPONENTS: dict[str, Callable[[Scores, str], float]] = {
    "rouge": _rouge,
    "probability": _probability,
    "truth_ratio": _truth_ratio,
}


def _row_mean(scores: Scores, name: str, attribute: str) -> float:
    values = [getattr(row, attribute) for row in _rows(scores, name)]
    if None in values:
        default = f"row {values.index(None) + 1} of the set '{name}' has no {attribute.replace('_', ' ')}"
        raise _AbsentError(scores.notes.get(attribute, default))
    return float(np.mean(values))


def _log_ratios(scores: Scores, name: str) -> formulas.Floats:
    rows = _rows(scores, name)
    right: list[float] = []
    for number, row in enumerate(rows, start=1):
        loss = row.paraphrased if row.paraphrased is not None or name not in GENERAL_SETS else row.answer
        if loss is None:
            raise _AbsentError(f"row {number} of the set '{name}' has no paraphrased answer")
        right.append(loss.mean)
    wrong = _wrong(scores, name, rows)
    return formulas.log_truth_ratios(_finite(scores, name, right), wrong, scores.truth_ratio)


def _wrong(scores: Scores, name: str, rows: Sequence[RowScores]) -> list[formulas.Floats]:
    for number, row in enumerate(rows, start=1):
        if not row.perturbed:
            raise _AbsentError(f"row {number} of the set '{name}' has no perturbed answers")
    return [_finite(scores, name, [loss.mean for loss in row.perturbed]) for row in rows]


def _rows(scores: Scores, name: str) -> tuple[RowScores, ...]:
    rows = scores.sets.get(name, ())
    if not rows:
        raise _AbsentError(f"the data has no evaluation set '{name}'")
    return rows


def _finite(scores: Scores, name: str, losses: Sequence[float]) -> formulas.Floats:
    array = np.asarray(losses, dtype=np.float64)
    if not np.isfinite(array).all():
        raise _NonFiniteError(f"'{scores.model}' gives a non-finite loss on the set '{name}'")
    return array
