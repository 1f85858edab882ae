"""Which metrics a trial computes, and what a search adds to the evaluation of its trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ofmu.evaluation.metrics.custom import is_custom_metric
from ofmu.evaluation.metrics.registry import (
    DEPTHS,
    DIVERGENCES,
    GENERATION,
    GROUPS,
    HOLDOUT,
    REFERENCE,
    REGISTRY,
    RETRAINED,
)
from ofmu.evaluation.sets import IN_SCOPE_KINDS

if TYPE_CHECKING:
    from ofmu.run_config import UnlearnConfig

INTERMEDIATE_SUBSTITUTES = {"forget_rouge": "forget_probability", "retain_rouge": "retain_probability"}
"""Metrics that replace, during a run, an objective that needs generated text."""

_OF_IMAGES = frozenset(info.name for info in GROUPS["Images"])
_OF_A_RUN = frozenset(info.name for info in GROUPS["Cost"])
_HARD_QUESTIONS = frozenset(f"{adjective} questions" for adjective in IN_SCOPE_KINDS.values())
_OVER_HARD_SETS = ("in_scope_forget_quality_variance", "in_scope_ks_variance")


def measured_by_request(name: str) -> bool:
    """Return whether a trial measures this metric only if the search names it: an attack, a depth or a divergence."""
    return name in (*DEPTHS, *DIVERGENCES) or (name in REGISTRY and REGISTRY[name].attack is not None)


def measured_at_the_end(name: str) -> bool:
    """Return whether a trial has no value of this metric during its run.

    The partial evaluation of early stopping and of checkpoint selection makes no attack, generates no text, and scores
    neither hard questions nor holdout rows. :data:`INTERMEDIATE_SUBSTITUTES` names metrics that it replaces.
    """
    if measured_by_request(name):
        return True
    if name not in REGISTRY or name in INTERMEDIATE_SUBSTITUTES:
        return False
    return _asks_hard_questions(name) or not {GENERATION, HOLDOUT}.isdisjoint(REGISTRY[name].needs)


def _asks_hard_questions(name: str) -> bool:
    return name in _OVER_HARD_SETS or not _HARD_QUESTIONS.isdisjoint(REGISTRY[name].needs)


def with_requested(evaluation: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the section ``evaluation`` of the trials, with what the named metrics need.

    Args:
        evaluation: the section of the search's config, as JSON values.
        names: the metrics of the objectives and of the constraints.
    """
    names = list(names)
    changed = dict(evaluation)
    functions = [*evaluation.get("custom_metrics", ()), *filter(is_custom_metric, names)]
    attacks = [attack for name in names if name in REGISTRY and (attack := REGISTRY[name].attack) is not None]
    for key, values in (("custom_metrics", functions), ("run_attacks", [*evaluation.get("run_attacks", ()), *attacks])):
        if values:
            changed[key] = list(dict.fromkeys(values))
    if any(name in DIVERGENCES for name in names):
        changed["kl"] = True
    if any(name in DEPTHS for name in names):
        changed["depth"] = True
    return changed


def missing_input(name: str, config: UnlearnConfig) -> str | None:
    """Return why a trial does not compute a metric, and what to do; None as far as the config tells nothing of it.

    Args:
        name: a metric of the registry, or a custom metric.
        config: the search.
    """
    if is_custom_metric(name) or name in _OF_A_RUN:
        return None
    needs, evaluation = REGISTRY[name].needs, config.evaluation
    if (config.data.kind == "vision") != (name in _OF_IMAGES):
        return f"the data are {'images' if config.data.kind == 'vision' else 'text'}; name another metric"
    if REFERENCE in needs and config.reference.source == "none":
        return "it compares with a retrained model, and reference.source is 'none'; give a reference"
    if name in DEPTHS:
        source = config.reference.source
        missing = (
            f"it reads the retrained model itself, and reference.source is '{source}'; set it to 'retrain' or 'model'"
        )
        return missing if source in ("scores", "none") else None
    if RETRAINED in needs:
        return "only ofmu evaluate compares hidden states; name another metric"
    if _asks_hard_questions(name):
        return None if evaluation.in_scope else "evaluation.in_scope is false; set it to true"
    if HOLDOUT in needs and not evaluation.membership:
        return "evaluation.membership is false; set it to true"
    if GENERATION in needs and not evaluation.rouge:
        return "evaluation.rouge is false; set it to true"
    return None
