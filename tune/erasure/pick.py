"""Candidates of a search for the rule of :mod:`ofmu.erasure.choice`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ofmu.erasure.choice import Candidate, ChoiceRule
from ofmu.errors import ConfigError, RunError
from ofmu.io.text import listed
from ofmu.run_files import RunFiles
from tune.erasure.settings import CONFIRM_SHARE
from tune.results.result import SearchResult
from tune.results.tables import complete_of_role, target_metrics
from tune.study.baselines import TARGET

if TYPE_CHECKING:
    import pandas as pd

MAX_CANDIDATES = 3
"""Largest number of trials that run again on further seeds."""
_FORGET_MEASURES = ("forget_probability", "exact_memorization", "extraction_strength", "forget_rouge")
"""Measures of what a model still knows of the forget rows, the finest first. Lower is better."""
_MOVED = 0.01
"""Least change of such a measure that counts."""


def rule_of(result: SearchResult, min_share: float, first_target: Mapping[str, Any] | None = None) -> ChoiceRule:
    """Return the rule with the bounds that the untouched target gives.

    Args:
        result: the search.
        min_share: least utility, as a share of the target's.
        first_target: the report on the first target of a chain, whose utility then takes the place of the target's.

    Raises:
        ConfigError: the second objective of the search is not one to maximise, or the first target lacks it.
        RunError: the target's trial is not complete.
    """
    forgetting, utility = list(result.config.objectives)[:2]
    if result.config.objectives[utility] != "max":
        raise ConfigError(
            f"ofmu forget keeps utility, and the second objective '{utility}' is minimised: name a utility second in "
            "search.objectives, such as model_utility"
        )
    trials = result.trials
    target = complete_of_role(trials, TARGET)
    if not len(target):
        reason = trials.loc[trials["role"] == TARGET, "reason"].tolist()
        raise RunError(f"The untouched target could not be scored ({reason[0] if reason else 'it did not run'})")
    known = float(target.iloc[0][utility])
    if first_target is not None:
        value = first_target["metrics"].get(utility)
        if value is None:
            reason = (first_target.get("reasons") or {}).get(utility, "an evaluation does not measure it")
            raise ConfigError(
                f"The first target has no {utility} ({reason}), and utility is compared with it: name another utility "
                "second in search.objectives, such as model_utility"
            )
        known = float(value)
    return ChoiceRule(
        forgetting=forgetting,
        direction=result.config.objectives[forgetting],
        utility=utility,
        min_share=min_share,
        target_forgetting=float(target.iloc[0][forgetting]),
        target_utility=known,
        in_chain=first_target is not None,
    )


def candidates(result: SearchResult, rule: ChoiceRule, count: int = MAX_CANDIDATES) -> list[Candidate]:
    """Return the best trials of the front that the rule allows, by their values on the seed of the search.

    Raises:
        RunError: the rule allows no trial.
    """
    result.require_front()
    front = [
        Candidate(trial=int(row["trial"]), forgetting=float(row[rule.forgetting]), utility=float(row[rule.utility]))
        for _, row in result.front.iterrows()
        if row["role"] != TARGET
    ]
    allowed = [candidate for candidate in rule.ordered(front) if rule.allows(candidate)]
    if not allowed:
        # The front holds the target alone if no trial is better, so all complete trials tell the reason.
        trials = result.trials[(result.trials["state"] == "complete") & (result.trials["role"] != TARGET)]
        unmoved = _unmoved(trials, target_metrics(result.trials), rule)
        raise RunError(f"No {_nothing_allowed(front, rule, result.display_path, complete=len(trials), hint=unmoved)}")
    return allowed[:count]


def affordable(result: SearchResult, seeds: int, hours: float) -> int:
    """Return how many candidates can run on the seeds in their share of the budget: at least one."""
    seconds = [float(value) for value in result.trials["seconds"].dropna()] if "seconds" in result.trials else []
    mean = sum(seconds) / len(seconds) if seconds else 0.0
    if mean <= 0:
        return MAX_CANDIDATES
    return max(1, int(CONFIRM_SHARE * hours * 3600 / (mean * seeds)))


def confirmed(result: SearchResult, found: list[Candidate], rule: ChoiceRule) -> list[Candidate]:
    """Return the candidates with their means over the further seeds, the best first.

    Raises:
        RunError: on the further seeds the rule allows no candidate.
    """
    confirmation = result.confirmation
    if confirmation is None:
        return found
    means = []
    for candidate in found:
        spreads = [confirmation.spread(candidate.trial, name) for name in (rule.forgetting, rule.utility)]
        if spreads[0] is None or spreads[1] is None:
            continue
        forgetting, utility = spreads[0], spreads[1]
        means.append(
            Candidate(trial=candidate.trial, forgetting=forgetting.mean, utility=utility.mean, runs=forgetting.runs)
        )
    ordered = rule.ordered(means)
    if not ordered or not rule.allows(ordered[0]):
        raise RunError(f"On further seeds, no {_nothing_allowed(means, rule, result.display_path)}")
    return ordered


def further_metrics(result: SearchResult, chosen: Candidate) -> list[Mapping[str, Any]]:
    """Return the metrics of each complete run on a further seed, if the candidate's values are means over such runs."""
    if not chosen.runs:
        return []
    # confirmation.json holds the objectives only, and the files of a run hold all metrics.
    points = result.confirmation.points if result.confirmation is not None else ()
    runs = [run for point in points if point.trial == chosen.trial for run in point.runs if run.metrics is not None]
    found = (RunFiles(result.run_dir / run.directory).read_metrics() for run in runs)
    return [metrics for metrics in found if metrics is not None]


def _unmoved(trials: pd.DataFrame, target: Mapping[Any, Any], rule: ChoiceRule) -> str | None:
    """Return what to do if no trial changed the first objective; None if one did, or there is no trial.

    A measure with few values, such as extraction strength on a few short rows, may stand still where others move.
    """
    if not len(trials) or any(trials[rule.forgetting] != rule.target_forgetting):
        return None
    moved = [
        name
        for name in _FORGET_MEASURES
        if name != rule.forgetting and name in trials and (trials[name] < (target.get(name) or 0.0) - _MOVED).any()
    ]
    still = f"the {rule.forgetting} of every trial is the target's {rule.target_forgetting:.4g}"
    if not moved:
        return f"{still}: give more --trials or --budget, and run the same command again"
    return (
        f"{still}, although {listed(moved)} fell, so it is too coarse for these rows: make {moved[0]} the first entry "
        "of search.objectives, and name a new --output"
    )


def _nothing_allowed(
    found: list[Candidate], rule: ChoiceRule, place: str, *, complete: int | None = None, hint: str | None = None
) -> str:
    """Return why the rule allows no trial, and the fix, without the sentence's first word.

    Args:
        found: the trials that the rule compared.
        rule: the rule.
        place: the search, for the message.
        complete: number of complete trials other than the target; None: as many as ``found``.
        hint: the reason and the fix, if the caller knows them.
    """
    best = max((candidate.utility for candidate in found if rule.forgets_more(candidate)), default=None)
    fix = "give more --trials or --budget, and run the same command again"
    if best is not None:
        known = f"the trials that forget more reach at most {best:.4g}"
        fix = "give more --trials or --budget, or a lower --min-utility, and run the same command again"
    else:
        count = len(found) if complete is None else complete
        known = "none forgets more" if count else "none is complete"
    return (
        f"trial of {place} forgets more than the target and has a {rule.utility} of at least {rule.bound}; "
        f"{hint or f'{known}: {fix}'}"
    )
