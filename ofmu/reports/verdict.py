"""What the numbers of one model say, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from ofmu.reports.numbers import number

_SIGNIFICANCE = 0.05
_FEW_WORDS = 0.5
"""Mean number of words of an answer below which most answers are empty."""
_MUCH_REPETITION = 0.5
"""Share of repeated word groups above which a reader sees at once that a model babbles."""


def verdict(metrics: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]], subject: str = "this model") -> str:
    """Return what the KS test, model utility and fluency say about a model; empty without these metrics.

    Args:
        metrics: the model's metrics.
        baselines: the metrics of ``target``, if they are known.
        subject: the noun for the model.
    """
    target = baselines.get("target", {})
    return " ".join(
        filter(None, (_ks_test(metrics, target, subject), _utility(metrics, target), _fluency(metrics, target)))
    )


def great_loss(metrics: Mapping[str, Any], target: Mapping[str, Any], name: str = "model_utility") -> str | None:
    """Return how little of the target's utility a model keeps, as the rest of a sentence; None from one half on.

    Args:
        metrics: the model's metrics.
        target: those of the target.
        name: the metric of utility, which is better when higher.
    """
    utility, full = metrics.get(name), target.get(name)
    if not _is_number(utility) or not _is_number(full) or not 0 <= utility < full / 2:
        return None
    return f"keeps {100 * utility / full:.0f} % of the target's {name}"


def ks_numbers(metrics: Mapping[str, Any]) -> str:
    """Return D, p and n of the KS test, such as ``D = 0.25, p = 0.27, n = 32``; empty without the test."""
    distance, p, rows = (metrics.get(name) for name in ("ks_statistic", "forget_quality", "forget_quality_rows"))
    if not all(_is_number(value) for value in (distance, p, rows)):
        return ""
    return f"D = {number(distance, 3)}, p = {number(p, 2)}, n = {number(rows)}"


def _ks_test(metrics: Mapping[str, Any], target: Mapping[str, Any], subject: str) -> str:
    test = ks_numbers(metrics)
    if not test:
        return ""
    verb = "tells" if metrics["forget_quality"] < _SIGNIFICANCE else "does not tell"
    text = f"On the forget rows, the KS test {verb} {subject} from the retrained model ({test})."
    before = target.get("forget_quality")
    if before is not None and _is_number(before):
        told = "tells" if before < _SIGNIFICANCE else "does not tell"
        text += f" It {told} the target from the retrained model (p = {number(before, 2)})."
    return text


def _utility(metrics: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    utility, full = metrics.get("model_utility"), target.get("model_utility")
    if not _is_number(utility) or not _is_number(full):
        return ""
    if full == 0:
        return f"Model utility is {number(utility, 3)}, and the target's is 0."
    lost = " More than half of it is lost." if great_loss(metrics, target) else ""
    return f"Model utility is {number(utility, 3)}, {100 * utility / full:.0f} % of the target's.{lost}"


def _fluency(metrics: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """Return what is wrong with the answers to forget questions, which the KS test does not read."""
    words, repetition = metrics.get("forget_answer_words"), metrics.get("forget_repetition")
    # A target whose answers are as bad says that unlearning did not make them so. An unknown target says nothing.
    if _is_number(words) and words < _FEW_WORDS <= _or(target.get("forget_answer_words"), _FEW_WORDS):
        return "Most answers to forget questions are empty."
    if _is_number(repetition) and repetition > _MUCH_REPETITION >= _or(target.get("forget_repetition"), 0.0):
        return f"Answers to forget questions repeat themselves (forget_repetition {number(repetition, 2)})."
    return ""


def _or(value: Any, default: float) -> float:
    return value if _is_number(value) else default


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and value == value
