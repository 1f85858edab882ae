"""From per-row scores to the metrics that are reported, each with its reason where it cannot be computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ofmu.evaluation.matching import require_match
from ofmu.evaluation.metrics import formulas as formulas
from ofmu.evaluation.metrics.groups import choice_group, fluency_group, in_scope_group, membership_group
from ofmu.evaluation.metrics.row_values import (
    MissingScoresError,
    NonFiniteError,
    log_ratios,
    probability,
    row_mean,
    truth_ratio,
)
from ofmu.evaluation.scores import Scores
from ofmu.evaluation.sets import FORGET, KINDS, SETS, UTILITY_SETS, TruthRatio

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


_COMPONENTS: dict[str, Callable[[Scores, str], float]] = {
    "rouge": lambda scores, name: row_mean(scores, name, "rouge"),
    "probability": probability,
    "truth_ratio": truth_ratio,
}


def metrics_of(scores: Scores, reference: Scores | None = None) -> Metrics:
    """Compute every metric of ``scores``; forget quality and what else compares is taken against ``reference``.

    Metrics of a group that ``evaluation`` did not ask for (membership, in-scope sets) are left out.

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
        table.add(metric, partial(row_mean, scores, FORGET, metric))
    groups = (
        choice_group(scores),
        fluency_group(scores),
        membership_group(scores, reference),
        in_scope_group(scores, reference),
    )
    for group in groups:
        for metric, compute in group.items():
            table.add(metric, compute)
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
        except MissingScoresError as reason:
            self.values[name], self.reasons[name] = None, str(reason)
        except NonFiniteError as reason:
            self.values[name], self.reasons[name] = None, str(reason)
            self.broken.append(name)

    def add_quality(self, scores: Scores, reference: Scores | None) -> None:
        try:
            if reference is None:
                raise MissingScoresError("no reference was given")
            quality = formulas.forget_quality(log_ratios(scores, FORGET), log_ratios(reference, FORGET))
        except (MissingScoresError, NonFiniteError) as reason:
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
