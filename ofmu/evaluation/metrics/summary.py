"""Compute the reported metrics from per-row scores. A metric that cannot be computed has a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ofmu.evaluation.matching import require_match
from ofmu.evaluation.metrics import formulas
from ofmu.evaluation.metrics.groups import (
    choice_group,
    fluency_group,
    in_scope_group,
    knowledge_group,
    lume_group,
    membership_group,
    rwku_group,
)
from ofmu.evaluation.metrics.row_values import (
    MissingScoresError,
    NonFiniteError,
    log_ratios,
    probability,
    row_mean,
    truth_ratio,
)
from ofmu.evaluation.scores import Scores
from ofmu.evaluation.sets import COMPONENTS, FORGET, SETS, UTILITY_SETS, TruthRatio

FORGET_QUALITY_METRICS = ("ks_statistic", "forget_quality", "log10_forget_quality", "forget_quality_rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The metrics of one evaluation."""

    values: dict[str, float | None]
    """Value of each metric. None: the metric could not be computed."""
    reasons: dict[str, str]
    """Reason of each metric that is None."""
    utility_components: tuple[str, ...] = ()
    """The metrics whose harmonic mean is ``model_utility``. Nine if the data has all sets, none for images."""
    truth_ratio: TruthRatio | None = None
    """Definition of the truth ratios. None for images."""

    def to_json(self) -> dict[str, Any]:
        """Return the metrics as plain JSON values."""
        return {
            "metrics": dict(self.values),
            "reasons": dict(self.reasons),
            "utility_components": list(self.utility_components),
            "truth_ratio": self.truth_ratio,
        }


_COMPONENT_FUNCTIONS: dict[str, Callable[[Scores, str], float]] = {
    "rouge": lambda scores, name: row_mean(scores, name, "rouge"),
    "probability": probability,
    "truth_ratio": truth_ratio,
}


def metrics_of(scores: Scores, reference: Scores | None = None) -> Metrics:
    """Compute every metric of ``scores``. Metrics that compare take ``reference`` as the other side.

    Metrics of a group that ``evaluation`` did not select (membership, in-scope sets) are left out.

    Raises:
        ReferenceMismatchError: the reference covers other rows, or follows another truth-ratio definition.
    """
    if reference is not None:
        require_match(scores, reference)
    collector = _Collector()
    collector.add_forget_quality(scores, reference)
    for name in SETS:
        for component in COMPONENTS:
            collector.add(f"{name}_{component}", partial(_COMPONENT_FUNCTIONS[component], scores, name))
    used = collector.add_utility([f"{name}_{component}" for name in UTILITY_SETS for component in COMPONENTS])
    for metric in ("extraction_strength", "exact_memorization"):
        collector.add(metric, partial(row_mean, scores, FORGET, metric))
    groups = (
        choice_group(scores),
        knowledge_group(scores),
        lume_group(scores),
        rwku_group(scores),
        fluency_group(scores),
        membership_group(scores, reference),
        in_scope_group(scores, reference),
    )
    for group in groups:
        for metric, compute in group.items():
            collector.add(metric, compute)
    return Metrics(
        values=collector.values,
        reasons=collector.reasons,
        utility_components=used,
        truth_ratio=scores.truth_ratio,
    )


@dataclass
class _Collector:
    """Computes metrics one by one, and collects values and reasons."""

    values: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    non_finite: list[str] = field(default_factory=list)
    """Metrics that are None because a score is NaN or infinite, and not because the scores are missing."""

    def add(self, name: str, compute: Callable[[], float]) -> None:
        try:
            self.values[name] = compute()
        except MissingScoresError as reason:
            self.values[name], self.reasons[name] = None, str(reason)
        except NonFiniteError as reason:
            self.values[name], self.reasons[name] = None, str(reason)
            self.non_finite.append(name)

    def add_forget_quality(self, scores: Scores, reference: Scores | None) -> None:
        try:
            if reference is None:
                raise MissingScoresError("no reference was given")
            quality = formulas.forget_quality(log_ratios(scores, FORGET), log_ratios(reference, FORGET))
        except (MissingScoresError, NonFiniteError) as reason:
            self.values.update(dict.fromkeys(FORGET_QUALITY_METRICS, None))
            self.reasons.update(dict.fromkeys(FORGET_QUALITY_METRICS, str(reason)))
            return
        numbers = (quality.statistic, quality.p_value, quality.log10_p_value, float(quality.rows))
        self.values.update(zip(FORGET_QUALITY_METRICS, numbers, strict=True))

    def add_utility(self, components: Sequence[str]) -> tuple[str, ...]:
        """Add the harmonic mean of the components that the data has. Return the names of these components.

        A component that is not finite makes model utility None. Leaving out such a component would reward a broken
        model.
        """
        used = tuple(name for name in components if self.values[name] is not None)
        broken = [name for name in components if name in self.non_finite]
        if broken:
            self.values["model_utility"] = None
            self.reasons["model_utility"] = f"{', '.join(broken)} could not be computed: {self.reasons[broken[0]]}"
        elif not used:
            self.values["model_utility"] = None
            self.reasons["model_utility"] = "the data has no evaluation set other than forget"
        else:
            self.values["model_utility"] = formulas.harmonic_mean([self.values[name] or 0.0 for name in used])
        return used
