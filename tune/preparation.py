"""The preparation of a search on Ray: make the target and the reference once, and check what they can give."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofmu.errors import ConfigError
from ofmu.evaluation.metrics.registry import DEPTHS, DIVERGENCES, GROUPS, REGISTRY, WRONG
from ofmu.evaluation.sets import FORGET
from ofmu.evaluation.weak_reference import weak_reference
from ofmu.io.cache import Cache, cache_root
from ofmu.io.library_logging import silence_libraries
from ofmu.io.text import counted
from tune.rundir.prepared import download_into_cache
from tune.space.constraints import Limit, resolve_limits
from tune.space.measured import measured_by_request
from tune.space.objectives import COST_METRICS, NEEDS_REFERENCE, default_objectives, missing_objective_sentence

if TYPE_CHECKING:
    from ofmu.data.rows import UnlearnData
    from ofmu.evaluation.metrics.summary import Metrics
    from ofmu.tasks.events import PreparationCallback
    from ofmu.tasks.preparation import Prepared
    from tune.config import SearchConfig
    from tune.rundir.search_dir import RunDirectory

_SIGNIFICANCE = 0.05
"""p-value above which the KS test does not tell two models apart."""
_KS_METRICS = frozenset({"ks_statistic", "forget_quality", "log10_forget_quality"})
_MEASURED_BY_THE_RUN = frozenset(info.name for info in GROUPS["Cost"])
_FORGETTING = frozenset(
    info.name for group in ("Forgetting", "Hard questions about the forget rows") for info in GROUPS[group]
)
NEEDS_OTHER_ANSWERS = frozenset(info.name for info in GROUPS["Forgetting"] if WRONG in info.needs)
"""Metrics that need paraphrased and perturbed answers of the forget rows."""
_UTILITY = frozenset(
    {info.name for info in GROUPS["Utility"]}
    | {"utility_letter_accuracy", "utility_choice_accuracy", "remaining_accuracy", "testing_accuracy"}
)
"""Metrics of what a model can do beside the forgotten rows."""
_MIN_FORGET_PROBABILITY = 0.3
"""Mean probability of the forget answers (to the power of 1/tokens) below which a target counts as undertrained."""


def prepare_search(run: RunDirectory, config: SearchConfig, callback: PreparationCallback) -> Prepared:
    """Make the target and the reference for all trials, or find them in the cache.

    With ``cluster.num_workers`` above 0, a worker group makes them. A search at a URI makes them in this process, since
    its nodes need not share a cache. A resumed search at a URI first downloads what it has prepared.

    Raises:
        OfmuError: data or model cannot be prepared.
    """
    # This import loads Ray, which takes seconds.
    from cluster.train.preparation import prepare

    silence_libraries()
    shared, cluster = config.unlearn, config.cluster
    if run.uri is not None and run.study_file.is_file():
        download_into_cache(run.uri, Cache(cache_root(shared.cache_dir)))
    if run.uri is not None:
        cluster = cluster.model_copy(update={"num_workers": 0})
    return prepare(shared, cluster, callback)


def check_objectives_on_rows(config: SearchConfig, rows: UnlearnData | None) -> None:
    """Check the objectives that the user named on the rows, before anything is prepared.

    The preparation checks all objectives on the target's scores. This check finds earlier that the forget rows lack the
    other answers with which the truth ratio, and so the KS statistic, is computed.

    Args:
        config: the search.
        rows: the rows, if they are known.

    Raises:
        ConfigError: an objective cannot be computed on the rows.
    """
    named, reason = _without_truth_ratio(config.search.objectives or (), rows)
    if named is not None:
        raise ConfigError(missing_objective_sentence(named, reason))


def with_objectives_of_rows(config: SearchConfig, rows: UnlearnData | None) -> tuple[SearchConfig, str | None]:
    """Return the config with default objectives that fit the rows, and the sentence to say if this changes them.

    This is for a search that scores no target, where :func:`resolve_objectives` has nothing to read. Objectives that
    the user named stay, since the user's own runs may measure them.

    Args:
        config: the search.
        rows: the rows, if they are known.
    """
    if config.search.objectives is not None:
        return config, None
    name, reason = _without_truth_ratio(config.objectives, rows)
    return (config, None) if name is None else _with_other_defaults(config, name, reason)


def _without_truth_ratio(objectives: Iterable[str], rows: UnlearnData | None) -> tuple[str | None, str]:
    """Return the first objective that needs answers which a forget row lacks, or None, and what the row lacks."""
    named = next(filter(NEEDS_OTHER_ANSWERS.__contains__, objectives), None)
    if named is None or rows is None or FORGET not in rows.evaluation:
        return None, ""
    for number, row in enumerate(rows.evaluation[FORGET].rows, start=1):
        if not (row.paraphrased_answer and row.perturbed_answers):
            lacking = "perturbed answers" if row.paraphrased_answer else "paraphrased answer"
            return named, f"forget row {number} has no {lacking}"
    return None, ""


def _with_other_defaults(config: SearchConfig, name: str, reason: str) -> tuple[SearchConfig, str]:
    """Return the config with the default objectives of a search without a reference, and the sentence to say."""
    search = config.search.model_copy(update={"objectives": default_objectives(has_reference=False)})
    sentence = f"searching extraction_strength in place of {name}: {reason}"
    return config.model_copy(update={"search": search}), sentence


def resolve_objectives(config: SearchConfig, prepared: Prepared) -> SearchConfig:
    """Check the objectives on the target's scores, before any trial runs. Return the config with objectives that work.

    Rows without paraphrased and perturbed answers have no truth ratio, and so no KS statistic. Then the default
    objectives become the objectives of a search without a reference.

    Raises:
        ConfigError: an objective that the user named cannot be computed on the data.
    """
    given = _stored_metrics(config, prepared.target_scores, prepared.reference_scores)
    _warn_if_undertrained(config, given.values.get("forget_probability"))
    _warn_if_the_target_passes(config, given.values)
    if prepared.retrain is not None and prepared.reference_scores is not None:
        retrained = _stored_metrics(config, prepared.reference_scores, prepared.reference_scores)
        weakness = weak_reference(given.values, retrained.values)
        if weakness is not None:
            warnings.warn(weakness, stacklevel=2)
    for name in config.objectives:
        if name in COST_METRICS or measured_by_request(name) or given.values.get(name) is not None:
            continue
        reason = given.reasons.get(name, "it is not among what trials are scored for")
        if config.search.objectives is not None or name not in NEEDS_REFERENCE:
            raise ConfigError(missing_objective_sentence(name, reason))
        config, sentence = _with_other_defaults(config, name, reason)
        warnings.warn(sentence, stacklevel=2)
    return config


def check_constraints_can_be_kept(config: SearchConfig, prepared: Prepared) -> dict[str, float]:
    """Check the constraints on the scores of the target and of the reference, before any trial runs.

    A constraint on utility must be kept by the target, since unlearning starts there. Any other constraint should be
    kept by the target or by the retrained model. If neither keeps a bound towards more forgetting, a model that forgets
    more than the retrained one may keep it, so that is a warning.

    Returns:
        The metrics of the target that are known.

    Raises:
        ConfigError: a constrained metric cannot be computed on the data, or nothing can keep a constraint.
    """
    names = list(config.search.constraints)
    if not names:
        return {}
    given = _stored_metrics(config, prepared.target_scores, prepared.reference_scores)
    target = {name: float(value) for name, value in given.values.items() if value is not None}
    # By definition the target does not diverge from itself and has forgotten nothing, and the retrained model all.
    target |= dict.fromkeys(filter((*DEPTHS, *DIVERGENCES).__contains__, names), 0.0)
    reference: dict[str, Any] = {}
    if prepared.reference_scores is not None:
        reference |= _stored_metrics(config, prepared.reference_scores, prepared.reference_scores).values
    reference |= dict.fromkeys(DEPTHS, 1.0)
    for name in names:
        if name not in target and name not in _MEASURED_BY_THE_RUN and not measured_by_request(name):
            reason = given.reasons.get(name, "it is not among what trials are scored for")
            raise ConfigError(f"search.constraints names {name}, which cannot be computed on this data: {reason}")
    for limit in resolve_limits(config.search.constraints, target)[0]:
        _check_can_be_kept(limit, target.get(limit.metric), reference.get(limit.metric))
    return target


def _check_can_be_kept(limit: Limit, target: float | None, reference: float | None) -> None:
    name = limit.metric
    if target is None or limit.is_kept(target):
        return
    key = f"search.constraints.{name}.{limit.side}"
    if name in _UTILITY:
        raise ConfigError(
            f"No trial can be expected to keep {limit}, since the untouched target has {target:.4g}, and unlearning "
            f"does not raise utility: lower {key}, or make it a share such as 0.95 of target"
        )
    if reference is None or limit.is_kept(reference):
        return
    sentence = f"Neither the untouched target ({target:.4g}) nor the retrained model ({reference:.4g}) keeps {limit}"
    if name in _FORGETTING and REGISTRY[name].direction == {"max": "min", "min": "max"}[limit.side]:
        warnings.warn(f"{sentence}: only a model that forgets more than the retrained one does", stacklevel=3)
        return
    raise ConfigError(f"{sentence}, so no trial can be expected to: change {key}")


def _warn_if_the_target_passes(config: SearchConfig, values: Mapping[str, Any]) -> None:
    """Warn if the KS test cannot tell the untouched target from the retrained model, though it is an objective."""
    quality, rows = values.get("forget_quality"), values.get("forget_quality_rows")
    if quality is None or quality <= _SIGNIFICANCE or not _KS_METRICS & set(config.objectives):
        return
    warnings.warn(
        f"the KS test does not tell the untouched target from the retrained model (forget_quality {quality:.2f} on "
        f"{counted(int(rows or 0), 'row')}), so ks_statistic and forget_quality say little: forget more rows, raise "
        "training.epochs, or name extraction_strength in search.objectives",
        stacklevel=3,
    )


def write_reference_metrics(run: RunDirectory, config: SearchConfig, prepared: Prepared) -> None:
    """Write the retrained model's own metrics, for the plot. Do nothing without a reference.

    Raises:
        StorageError: the write fails.
    """
    if prepared.reference_scores is not None:
        given = _stored_metrics(config, prepared.reference_scores, prepared.reference_scores)
        run.write_reference(given.values)


def _stored_metrics(config: SearchConfig, scores: Path, reference: Path | None) -> Metrics:
    # This import loads torch, which takes seconds.
    from ofmu.tasks.load import task_family

    functions = config.unlearn.evaluation.custom_metrics
    return task_family(config.data.kind).stored_metrics(scores, reference, functions)


def _warn_if_undertrained(config: SearchConfig, probability: float | None) -> None:
    """Warn if the preparation trained the target, and the target does not know the rows to forget."""
    if probability is not None and probability < _MIN_FORGET_PROBABILITY and not config.model.is_target:
        warnings.warn(
            f"the target hardly knows the rows to forget (forget_probability {probability:.2f} before any unlearning), "
            "so the search can find out little: raise training.epochs",
            stacklevel=3,
        )
