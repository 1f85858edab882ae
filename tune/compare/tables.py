"""A comparison's tables: a wide one for programs, and compact ones for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ofmu.io.text import counted
from ofmu.reports.numbers import MISSING, memory
from tune.compare.statistics import EXACT_PAIRS, min_attainable_p
from tune.compare.summary import MIN_SEEDS, MethodSummary, PairTest, Summary

EXACTNESS = f"exact, or sampled above {EXACT_PAIRS} pairs"
"""How p is computed, for sentences on the test."""


def wide_table(summary: Summary) -> pd.DataFrame:
    """Return one row per method, with every number of the comparison but those of single runs."""
    return pd.DataFrame([_wide_row(method, summary) for method in summary.methods])


def compact_table(summary: Summary) -> list[list[str]]:
    """Return a header and one row of text per method, sorted by mean rank.

    A value at a level is the mean over the seeds on which the method reached the level. The number of these seeds
    follows if not all seeds are among them. ``*`` marks what is significantly best.
    """
    header = [
        "method",
        "hypervolume [95 %]",
        *_level_names(summary),
        "mean rank",
        _p_header(summary),
        "gradient evaluations: search / run",
        "seconds / run",
        "peak memory",
        "points",
        "failed: trials / runs",
        "decides most",
    ]
    return [header, *(_compact_row(method, summary) for method in summary.methods)]


def constraints_sentence(summary: Summary) -> str:
    """Return the constraints and how many runs violate them, with a space at the end; empty without constraints."""
    if not summary.limits:
        return ""
    broken = ", ".join(f"{method.name} {method.infeasible_runs}" for method in summary.methods)
    return (
        f"Constraints: {', '.join(summary.limits)}. A run that violates one counts as if it had no result "
        f"(runs by method: {broken}). "
    )


def test_table(summary: Summary) -> list[list[str]]:
    """Return a header and one row of text per pair of methods and quantity."""
    rows = [["quantity", "pair", "mean gain of the first", "pairs", "p", "p (Holm)", "least p", "on every seed"]]
    for test in summary.tests:
        rows.append(
            [
                test.quantity,
                f"{test.first} – {test.second}",
                f"{test.gain:+.4f}",
                str(test.pairs),
                f"{test.p:.2g}{'' if test.exact else ' (sampled)'}",
                f"{test.p_holm:.2g}",
                f"{test.min_attainable_p:.2g}",
                "yes" if test.consistent else "no",
            ]
        )
    return rows


def verdict(summary: Summary) -> str:
    """Return which method is significantly best, or why there is none; after the constraints, if there are any."""
    return f"{constraints_sentence(summary)}{_best_sentence(summary)}"


def _best_sentence(summary: Summary) -> str:
    best, leader = summary.best["levels"], summary.methods[0].name
    if best is not None:
        return (
            f"{best} is significantly better than every other method over all pairs of seed and level "
            f"(corrected p below {summary.significance:g}, and better on every seed)."
        )
    if len(summary.seeds) < MIN_SEEDS:
        return f"No method is marked as best on fewer than {MIN_SEEDS} seeds; {_leaders(summary)}."
    return f"No method is significantly best: {_leaders(summary)}, but {_doubt(leader, summary)}."


def _doubt(leader: str, summary: Summary) -> str:
    """Return why the method of the best mean rank is not significantly better than every other method.

    The sentence names the pair that speaks most against it: a method that is significantly better, else the largest p,
    else a seed on which the order is another.
    """
    own = [test for test in summary.tests if test.quantity == "levels" and test.is_between(leader)]
    failing = [test for test in own if not test.is_won(leader, summary.significance)]
    lost = [test for test in failing if test.p_holm < summary.significance and not test.is_better(leader)]
    worst = min(lost, key=lambda test: test.p_holm) if lost else max(failing, key=lambda test: test.p_holm)
    other, p = worst.second if worst.first == leader else worst.first, f"{worst.p_holm:.2g}"
    if worst.p_holm >= summary.significance:
        return f"{leader} is not significantly different from {other} (corrected p {p})"
    if worst.is_better(leader):
        return f"{leader} is not better than {other} on every seed (corrected p {p})"
    seeds = "" if worst.consistent else ", though not on every seed"
    return f"{other} is better than {leader} in the mean over all pairs of seed and level (corrected p {p}){seeds}"


def _leaders(summary: Summary) -> str:
    """Return which method has the best mean rank, or which methods share it."""
    best = min(method.mean_rank for method in summary.methods)
    names = [method.name for method in summary.methods if method.mean_rank == best]
    return f"{names[0]} has the best mean rank" if len(names) == 1 else f"{', '.join(names)} share the best mean rank"


def explanation(summary: Summary) -> str:
    """Return how to read the table: the runs, the levels, the test, and the limits of the test."""
    seeds = ", ".join(str(seed) for seed in summary.seeds)
    count, others = len(summary.seeds), counted(len(summary.seeds), "other seed")
    forgetting, utility = list(summary.objectives)[:2]
    models = f"The untouched target: {_values(summary.target)}."
    if summary.reference:
        models += f" The retrained reference: {_values(summary.reference)}."
    budget = {"trials": "number of trials"}.get(summary.budget, "number of gradient evaluations")
    return (
        f"Every method had its own search with the same {budget}. The points of its front, without the untouched "
        f"target, were run again from the same prepared target on {others} ({seeds}), and all "
        f"numbers are of those runs. {models} The value of {utility} at a level of {forgetting}, and the reverse, is "
        "the best value of a run that satisfies the level, averaged over the seeds, without interpolation. A dash says "
        "that no run satisfies the level; (1/3) says that only runs of one seed of three do. Ranks and p are over all "
        "pairs of seed and level. A level that a method does not reach counts as the worst possible value. p comes "
        f"from a sign-flip permutation test ({EXACTNESS}), and is corrected by Holm's method for all pairs of methods. "
        "Levels that the same two runs meet count once. Runs of one seed are not independent, so p is somewhat too "
        "small. Bold and * therefore also require that a method is better on every single seed. The seeds show how "
        "much runs differ, not what another search would have found. Hypervolume is tested over the seeds only: with "
        f"{counted(count, 'seed')}, no p can be below {min_attainable_p(count):.2g}, and bootstrap intervals "
        "of so few values are too narrow. Peak memory is that of the process that made a method's runs, one after the "
        "other."
    )


def _values(objectives: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_value(name, value)}" for name, value in objectives.items())


def _value(name: str, value: float) -> str:
    return memory(value) if name.endswith("_bytes") else f"{value:.3f}"


def _level_names(summary: Summary) -> list[str]:
    forgetting, utility = list(summary.objectives)[:2]
    signs = {"min": "≤", "max": "≥"}
    names = [
        f"{utility} at {forgetting} {signs[summary.objectives[forgetting]]} {level:.3g}"
        for level in summary.levels.forgetting
    ]
    return names + [
        f"{forgetting} at {utility} {signs[summary.objectives[utility]]} {level:.3g}"
        for level in summary.levels.utility
    ]


def _at_levels(method: MethodSummary) -> list[tuple[float | None, ...]]:
    return [*method.utility_at_forgetting, *method.forgetting_at_utility]


def _wide_row(method: MethodSummary, summary: Summary) -> dict[str, Any]:
    low, high = method.hypervolume_interval or (None, None)
    row: dict[str, Any] = {
        "method": method.name,
        "significantly_best": summary.best["levels"] == method.name,
        "hypervolume": method.hypervolume,
        "hypervolume_low": low,
        "hypervolume_high": high,
    }
    for name, values in zip(_level_names(summary), _at_levels(method), strict=True):
        row[name] = _mean(values)
        row[f"{name}: seeds"] = sum(value is not None for value in values)
    test = _test_against_leader(method.name, summary)
    return row | {
        "mean_rank": method.mean_rank,
        "p_holm_against_leader": None if test is None else test.p_holm,
        "points": len(method.points),
        "runs": len(method.runs),
        "failed_runs": _failed_runs(method),
        "trials": method.trials,
        "failed_trials": method.failed,
        "pruned_trials": method.pruned,
        **method.cost.model_dump(),
        **{f"importance of {name}": share for name, share in method.importances.items()},
    }


def _compact_row(method: MethodSummary, summary: Summary) -> list[str]:
    cost, mark = method.cost, {quantity: "*" if name == method.name else "" for quantity, name in summary.best.items()}
    interval = method.hypervolume_interval
    volume = f"{method.hypervolume:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
    test = _test_against_leader(method.name, summary)
    first = next(iter(method.importances.items()), None)
    return [
        f"{method.name}{mark['levels']}",
        f"{volume}{mark['hypervolume']}",
        *(_level_cell(values) for values in _at_levels(method)),
        f"{method.mean_rank:.2f}",
        MISSING if test is None else f"{test.p_holm:.2g}",
        f"{cost.search_gradient_evaluations:.0f} / {_number(cost.run_gradient_evaluations, '.0f')}",
        _number(cost.run_seconds, ".1f"),
        memory(cost.run_peak_memory_bytes),
        str(len(method.points)),
        _failures(method),
        MISSING if first is None else f"{first[0].partition('.')[2]} {first[1]:.2f}",
    ]


def _failed_runs(method: MethodSummary) -> int:
    return sum(run.metrics is None for run in method.runs)


def _failures(method: MethodSummary) -> str:
    """Return how many trials of the search failed, and how many runs on other seeds."""
    pruned = f", {method.pruned} pruned" if method.pruned else ""
    return f"{method.failed} of {method.trials}{pruned} / {_failed_runs(method)} of {len(method.runs)}"


def _p_header(summary: Summary) -> str:
    return f"p against {summary.methods[0].name} (Holm)"


def _test_against_leader(name: str, summary: Summary) -> PairTest | None:
    """Return the method's test against the method of the best mean rank; None for that method itself."""
    leader = summary.methods[0].name
    own = {name, leader}
    tests = [test for test in summary.tests if test.quantity == "levels" and {test.first, test.second} == own]
    return tests[0] if tests else None


def _mean(values: Sequence[float | None]) -> float | None:
    reached = [value for value in values if value is not None]
    return sum(reached) / len(reached) if reached else None


def _level_cell(values: Sequence[float | None]) -> str:
    reached = sum(value is not None for value in values)
    text = _number(_mean(values), ".3f")
    return text if reached in (0, len(values)) else f"{text} ({reached}/{len(values)})"


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)
