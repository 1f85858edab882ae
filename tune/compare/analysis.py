"""Compute a comparison's summary from all runs: levels, hypervolumes, ranks and tests. No Ray, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from tune.compare.retain import hypervolume_spread, hypervolumes_of, retain_spreads
from tune.compare.statistics import (
    Values,
    best_at_levels,
    bootstrap_interval,
    holm,
    mean_ranks,
    paired_test,
)
from tune.compare.summary import MIN_SEEDS, Cost, Levels, MethodSummary, PairTest, Quantity, RetainSpread, Summary
from tune.pareto import Points, as_costs, hypervolume, reference_point
from tune.rundir.seed_runs import PointRuns
from tune.space.constraints import Limits, broken_sentence
from tune.space.objectives import Direction

if TYPE_CHECKING:
    from tune.compare.config import CompareOptions


@dataclass(frozen=True, kw_only=True)
class MethodRuns:
    """One method's search, and the runs of the points that were chosen from its front."""

    name: str
    title: str
    search: str
    trials: int
    failed: int
    pruned: int
    points: tuple[PointRuns, ...]
    importances: Mapping[str, float]
    search_gradient_evaluations: float
    search_seconds: float
    retain_points: tuple[PointRuns, ...] = ()
    """The same points on draws of the retain rows, in the order of the draws."""


@dataclass(frozen=True, kw_only=True)
class SharedContext:
    """What all methods of a comparison share: objectives, seeds, target and reference."""

    objectives: Mapping[str, Direction]
    seeds: tuple[int, ...]
    target: Mapping[str, float]
    reference: Mapping[str, float] | None
    seed: int
    """Seed of the bootstrap and of the sampled tests."""
    limits: Limits = ()
    """The bounds of the constraints. A run that violates one counts as if it had no result."""


@dataclass(frozen=True)
class _Normalisation:
    """The constants that turn objectives into costs and costs into units of their range."""

    signs: Values
    """(objectives,): 1 for an objective to be minimised, -1 for one to be maximised."""
    reference_point: Values
    """(objectives,) in costs: the hypervolume's reference point."""
    ideal: Values
    """(objectives,) in costs: the best value of any run or of the target."""
    forgetting: Values
    """(forgetting levels,): upper bounds on the first cost."""
    utility: Values
    """(utility levels,): upper bounds on the second cost."""


@dataclass(frozen=True)
class _MethodValues:
    """One method's values, in costs."""

    volumes: Values
    """(seeds,): hypervolumes."""
    utility: Values
    """(seeds, forgetting levels); NaN where no run reached the level."""
    forgetting: Values
    """(seeds, utility levels); NaN where no run reached the level."""


def summarise(
    found: Sequence[MethodRuns], shared: SharedContext, settings: CompareOptions, command: Sequence[str]
) -> Summary:
    """Return the summary of all methods' runs, sorted by mean rank."""
    found = [_with_violations(method, shared.limits) for method in found]
    runs = {method.name: run_costs(method.points, shared) for method in found}
    norm = _normalisation(list(runs.values()), shared, settings)
    values = {name: _method_values(costs, norm) for name, costs in runs.items()}
    blocks = {name: _level_costs(each, norm) for name, each in values.items()}
    volumes = {name: -each.volumes[:, None] for name, each in values.items()}
    ranks = mean_ranks(np.stack([block.ravel() for block in blocks.values()]))
    tests = [
        *_tests("levels", blocks, shared.seed, (len(norm.forgetting), len(norm.utility))),
        *_tests("hypervolume", volumes, shared.seed, (1,)),
    ]
    methods = [
        _method_summary(method, values[method.name], float(rank), norm, shared, settings.retain_draws)
        for method, rank in zip(found, ranks, strict=True)
    ]
    return Summary(
        command=tuple(command),
        objectives=dict(shared.objectives),
        seeds=shared.seeds,
        retain_draws=settings.retain_draws,
        retain_share=settings.retain_share if settings.retain_draws else 1.0,
        budget=str(settings.budget),
        significance=settings.significance,
        target=dict(shared.target),
        reference=None if shared.reference is None else dict(shared.reference),
        reference_point=dict(zip(shared.objectives, (norm.reference_point * norm.signs + 0.0).tolist(), strict=True)),
        limits=tuple(map(str, shared.limits)),
        levels=Levels(
            forgetting=tuple((norm.forgetting * norm.signs[0]).tolist()),
            utility=tuple((norm.utility * norm.signs[1]).tolist()),
        ),
        methods=tuple(sorted(methods, key=lambda method: method.mean_rank)),
        tests=tuple(tests),
        best={
            quantity: best_of(tests, quantity, settings.significance) if len(shared.seeds) >= MIN_SEEDS else None
            for quantity in ("levels", "hypervolume")
        },
    )


def run_costs(points: Sequence[PointRuns], shared: SharedContext, draws: int = 0) -> Values:
    """Return the runs' objectives as costs, shape (points, seeds, objectives), or (points, draws, objectives).

    A failed run is a row of NaN, and so is a run that violates a constraint.

    Args:
        points: the runs.
        shared: what all methods share.
        draws: the number of draws of the retain rows, counted from 1. 0: the runs are those of the seeds.
    """
    names, directions = list(shared.objectives), list(shared.objectives.values())
    costs = np.full((len(points), draws or len(shared.seeds), len(names)), np.nan)
    for row, point in enumerate(points):
        for run in point.runs:
            metrics = run.valid_metrics
            if metrics is None or any(metrics.get(name) is None for name in names):
                continue
            values = [[metrics[name] or 0.0 for name in names]]
            column = shared.seeds.index(run.seed) if run.retain_draw is None else run.retain_draw - 1
            costs[row, column] = as_costs(values, directions)[0]
    return costs


def _with_violations(method: MethodRuns, limits: Limits) -> MethodRuns:
    """Return the method's runs, with the constraints that each violates. All later numbers leave these runs out."""

    def marked(points: Sequence[PointRuns]) -> tuple[PointRuns, ...]:
        return tuple(
            point.model_copy(
                update={
                    "runs": tuple(
                        run.model_copy(update={"violation": _violation(run.metrics, limits)}) for run in point.runs
                    )
                }
            )
            for point in points
        )

    return replace(method, points=marked(method.points), retain_points=marked(method.retain_points))


def _violation(metrics: Mapping[str, float | None] | None, limits: Limits) -> str | None:
    """Return which constraints a run violates; None for a run that violates none, or that failed."""
    if metrics is None:
        return None
    unknown = [f"{limit.metric} is not known" for limit in limits if metrics.get(limit.metric) is None]
    return " and ".join(filter(None, [*unknown, broken_sentence(metrics, limits)])) or None


def best_of(tests: Sequence[PairTest], quantity: Quantity, significance: float) -> str | None:
    """Return the method that is significantly better than every other one; None if there is no such method.

    Against every other method, the corrected p must be below ``significance`` and every seed's mean must be better.
    """
    relevant = [test for test in tests if test.quantity == quantity]
    names = list(dict.fromkeys(name for test in relevant for name in (test.first, test.second)))
    for name in names:
        own = [test for test in relevant if test.is_between(name)]
        if own and all(test.is_won(name, significance) for test in own):
            return name
    return None


def _normalisation(runs: Sequence[Values], shared: SharedContext, settings: CompareOptions) -> _Normalisation:
    names, directions = list(shared.objectives), list(shared.objectives.values())
    signs = np.array([1.0 if way == "min" else -1.0 for way in directions])
    target = np.array([shared.target[name] for name in names]) * signs
    seen = np.vstack([target, *(costs.reshape(-1, len(names)) for costs in runs)])
    seen = seen[~np.isnan(seen).any(axis=1)]
    worst, ideal = reference_point(names, seen, directions), seen.min(axis=0)
    retrained = None if shared.reference is None else shared.reference.get(names[0])
    goal = min(float(ideal[0] if retrained is None else retrained * signs[0]), float(target[0]))
    return _Normalisation(
        signs,
        worst,
        ideal,
        forgetting=target[0] + np.array(settings.forgetting_levels) * (goal - target[0]),
        utility=worst[1] + np.array(settings.utility_levels) * (target[1] - worst[1]),
    )


def _method_values(costs: Values, norm: _Normalisation) -> _MethodValues:
    by_seed = [costs[:, seed] for seed in range(costs.shape[1])]
    finished: list[Points] = [points[~np.isnan(points).any(axis=1)] for points in by_seed]
    return _MethodValues(
        np.array([hypervolume(points, norm.reference_point) for points in finished]),
        np.stack([best_at_levels(points, 0, 1, norm.forgetting.tolist()) for points in finished]),
        np.stack([best_at_levels(points, 1, 0, norm.utility.tolist()) for points in finished]),
    )


def _level_costs(values: _MethodValues, norm: _Normalisation) -> Values:
    """Return costs of shape (seeds, levels), scaled to 0 (the best value of a run) ... 1 (the reference point).

    A level that no run reached costs 1.
    """
    span = norm.reference_point - norm.ideal
    span = np.where(span > 0, span, 1.0)
    utility = (values.utility - norm.ideal[1]) / span[1]
    forgetting = (values.forgetting - norm.ideal[0]) / span[0]
    costs: Values = np.nan_to_num(np.hstack([utility, forgetting]), nan=1.0)
    return costs


def _tests(quantity: Quantity, costs: Mapping[str, Values], seed: int, groups: Sequence[int]) -> list[PairTest]:
    pairs = list(combinations(costs, 2))
    tests = [paired_test(costs[first], costs[second], seed, groups) for first, second in pairs]
    corrected = holm([test.p for test in tests])
    return [
        PairTest(
            quantity=quantity,
            first=first,
            second=second,
            gain=test.gain,
            p=test.p,
            p_holm=p_holm,
            pairs=test.pairs,
            min_attainable_p=test.min_attainable_p,
            exact=test.exact,
            consistent=test.consistent,
        )
        for (first, second), test, p_holm in zip(pairs, tests, corrected, strict=True)
    ]


def _method_summary(
    runs: MethodRuns, values: _MethodValues, rank: float, norm: _Normalisation, shared: SharedContext, draws: int
) -> MethodSummary:
    volumes: list[float] = values.volumes.tolist()
    drawn: tuple[float, ...] = ()
    spreads: tuple[RetainSpread, ...] = ()
    if draws:
        drawn = hypervolumes_of(run_costs(runs.retain_points, shared, draws), norm.reference_point)
        objectives = retain_spreads(runs.points, runs.retain_points, list(shared.objectives))
        spreads = (*objectives, hypervolume_spread(volumes, drawn))
    return MethodSummary(
        name=runs.name,
        title=runs.title,
        search=runs.search,
        trials=runs.trials,
        failed=runs.failed,
        pruned=runs.pruned,
        points=runs.points,
        infeasible_runs=sum(run.violation is not None for point in runs.points for run in point.runs),
        cost=_cost(runs),
        hypervolumes=tuple(volumes),
        hypervolume=float(values.volumes.mean()),
        hypervolume_interval=bootstrap_interval(values.volumes, shared.seed),
        utility_at_forgetting=_per_level(values.utility * norm.signs[1]),
        forgetting_at_utility=_per_level(values.forgetting * norm.signs[0]),
        mean_rank=rank,
        retain_points=runs.retain_points,
        retain_hypervolumes=drawn,
        retain_spreads=spreads,
        importances=dict(runs.importances),
    )


def _per_level(values: Values) -> tuple[tuple[float | None, ...], ...]:
    """Return values of shape (seeds, levels) as one tuple of seeds per level, with None for NaN."""
    return tuple(tuple(None if value != value else float(value) for value in level) for level in values.T)


def _cost(runs: MethodRuns) -> Cost:
    finished = [run.metrics for point in runs.points for run in point.runs if run.metrics is not None]

    def values(name: str) -> list[float]:
        return [value for metrics in finished if (value := metrics.get(name)) is not None]

    def mean(name: str) -> float | None:
        reported = values(name)
        return sum(reported) / len(reported) if reported else None

    return Cost(
        search_gradient_evaluations=runs.search_gradient_evaluations,
        search_seconds=runs.search_seconds,
        run_gradient_evaluations=mean("gradient_evaluations"),
        run_seconds=mean("seconds"),
        run_peak_memory_bytes=max(values("peak_memory_bytes"), default=None),
    )
