"""From the runs of all methods to the comparison's summary: corner, levels, tests, ranks. No Ray, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from tune.compare.result import Cost, Levels, MethodSummary, PairTest, PointRuns, Quantity, Summary
from tune.compare.statistics import (
    Values,
    best_at_levels,
    bootstrap_interval,
    holm,
    mean_ranks,
    paired_test,
)
from tune.results.pareto import Points, as_costs, hypervolume, reference_point
from tune.space.objectives import Direction

if TYPE_CHECKING:
    from tune.compare.config import CompareOptions


LEAST_SEEDS = 3
"""With fewer no method is marked as best, whatever p is."""


@dataclass(frozen=True, kw_only=True)
class MethodRuns:
    """One method's search and what became of its chosen points."""

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


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all methods of a comparison share."""

    objectives: Mapping[str, Direction]
    seeds: tuple[int, ...]
    target: Mapping[str, float]
    reference: Mapping[str, float] | None
    seed: int
    """Of the bootstrap's and the tests' random numbers."""


@dataclass(frozen=True)
class _Scale:
    """The objectives as costs: signs that turn them, the corner, the best seen, and the levels."""

    signs: Values
    corner: Values
    ideal: Values
    forgetting: Values
    """Bounds on the first objective."""
    utility: Values
    """Bounds on the second objective."""


@dataclass(frozen=True)
class _Held:
    """One method's numbers, in costs."""

    volumes: Values
    """(seeds,)"""
    utility: Values
    """(seeds, forgetting levels); NaN where no run reached the level."""
    forgetting: Values
    """(seeds, utility levels)"""


def summarise(
    found: Sequence[MethodRuns], shared: Setting, settings: CompareOptions, command: Sequence[str]
) -> Summary:
    """Return the summary of all methods' runs, the best mean rank first."""
    runs = {method.name: run_costs(method.points, shared) for method in found}
    scale = _scale(list(runs.values()), shared, settings)
    held = {name: _hold(costs, scale) for name, costs in runs.items()}
    blocks = {name: _blocks(numbers, scale) for name, numbers in held.items()}
    ranks = mean_ranks(np.stack([block.ravel() for block in blocks.values()]))
    tests = [
        *_tests("levels", blocks, shared.seed, (len(scale.forgetting), len(scale.utility))),
        *_tests("hypervolume", {name: -numbers.volumes[:, None] for name, numbers in held.items()}, shared.seed, (1,)),
    ]
    methods = [
        _method(method, held[method.name], float(rank), scale, shared.seed)
        for method, rank in zip(found, ranks, strict=True)
    ]
    return Summary(
        command=tuple(command),
        objectives=dict(shared.objectives),
        seeds=shared.seeds,
        budget=str(settings.budget),
        significance=settings.significance,
        target=dict(shared.target),
        reference=None if shared.reference is None else dict(shared.reference),
        corner=dict(zip(shared.objectives, (scale.corner * scale.signs + 0.0).tolist(), strict=True)),
        levels=Levels(
            forgetting=tuple((scale.forgetting * scale.signs[0]).tolist()),
            utility=tuple((scale.utility * scale.signs[1]).tolist()),
        ),
        methods=tuple(sorted(methods, key=lambda method: method.mean_rank)),
        tests=tuple(tests),
        best={
            quantity: best_of(tests, quantity, settings.significance) if len(shared.seeds) >= LEAST_SEEDS else None
            for quantity in ("levels", "hypervolume")
        },
    )


def run_costs(points: Sequence[PointRuns], shared: Setting) -> Values:
    """Return the runs' objectives as costs, shape (points, seeds, objectives); a failed run is a row of NaN."""
    names, directions = list(shared.objectives), list(shared.objectives.values())
    costs = np.full((len(points), len(shared.seeds), len(names)), np.nan)
    for row, point in enumerate(points):
        for run in point.runs:
            if run.metrics is None or any(run.metrics.get(name) is None for name in names):
                continue
            values = [[run.metrics[name] or 0.0 for name in names]]
            costs[row, shared.seeds.index(run.seed)] = as_costs(values, directions)[0]
    return costs


def best_of(tests: Sequence[PairTest], quantity: Quantity, significance: float) -> str | None:
    """Return the method that beats every other: corrected p below ``significance``, and better on every seed."""
    own = [test for test in tests if test.quantity == quantity]
    names = list(dict.fromkeys(name for test in own for name in (test.first, test.second)))
    for name in names:
        mine = [test for test in own if name in (test.first, test.second)]
        won = [test.agrees and (test.gain > 0) == (test.first == name) and test.gain != 0 for test in mine]
        if mine and all(won) and all(test.p_holm < significance for test in mine):
            return name
    return None


def _scale(runs: Sequence[Values], shared: Setting, settings: CompareOptions) -> _Scale:
    names, directions = list(shared.objectives), list(shared.objectives.values())
    signs = np.array([1.0 if way == "min" else -1.0 for way in directions])
    target = np.array([shared.target[name] for name in names]) * signs
    seen = np.vstack([target, *(costs.reshape(-1, len(names)) for costs in runs)])
    seen = seen[~np.isnan(seen).any(axis=1)]
    corner, ideal = reference_point(names, seen, directions), seen.min(axis=0)
    known = None if shared.reference is None else shared.reference.get(names[0])
    goal = min(float(ideal[0] if known is None else known * signs[0]), float(target[0]))
    return _Scale(
        signs,
        corner,
        ideal,
        forgetting=target[0] + np.array(settings.forgetting_levels) * (goal - target[0]),
        utility=corner[1] + np.array(settings.utility_levels) * (target[1] - corner[1]),
    )


def _hold(costs: Values, scale: _Scale) -> _Held:
    by_seed = [costs[:, seed] for seed in range(costs.shape[1])]
    whole: list[Points] = [points[~np.isnan(points).any(axis=1)] for points in by_seed]
    return _Held(
        np.array([hypervolume(points, scale.corner) for points in whole]),
        np.stack([best_at_levels(points, 0, 1, scale.forgetting.tolist()) for points in whole]),
        np.stack([best_at_levels(points, 1, 0, scale.utility.tolist()) for points in whole]),
    )


def _blocks(held: _Held, scale: _Scale) -> Values:
    """Return (seeds, levels) of costs from 0, the best seen, to 1, the corner, which a level not reached gets."""
    span = scale.corner - scale.ideal
    span = np.where(span > 0, span, 1.0)
    utility = (held.utility - scale.ideal[1]) / span[1]
    forgetting = (held.forgetting - scale.ideal[0]) / span[0]
    whole: Values = np.nan_to_num(np.hstack([utility, forgetting]), nan=1.0)
    return whole


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
            least_p=test.least_p,
            exact=test.exact,
            agrees=test.agrees,
        )
        for (first, second), test, p_holm in zip(pairs, tests, corrected, strict=True)
    ]


def _method(runs: MethodRuns, held: _Held, rank: float, scale: _Scale, seed: int) -> MethodSummary:
    return MethodSummary(
        name=runs.name,
        title=runs.title,
        search=runs.search,
        trials=runs.trials,
        failed=runs.failed,
        pruned=runs.pruned,
        points=runs.points,
        cost=_cost(runs),
        hypervolumes=tuple(held.volumes.tolist()),
        hypervolume=float(held.volumes.mean()),
        hypervolume_interval=bootstrap_interval(held.volumes, seed),
        utility_at_forgetting=_per_level(held.utility * scale.signs[1]),
        forgetting_at_utility=_per_level(held.forgetting * scale.signs[0]),
        mean_rank=rank,
        importances=dict(runs.importances),
    )


def _per_level(values: Values) -> tuple[tuple[float | None, ...], ...]:
    """Return (seeds, levels) as one tuple of seeds per level, None for NaN."""
    return tuple(tuple(None if value != value else float(value) for value in level) for level in values.T)


def _cost(runs: MethodRuns) -> Cost:
    finished = [run.metrics for point in runs.points for run in point.runs if run.metrics is not None]

    def values(name: str) -> list[float]:
        return [value for metrics in finished if (value := metrics.get(name)) is not None]

    def mean(name: str) -> float | None:
        known = values(name)
        return sum(known) / len(known) if known else None

    return Cost(
        search_gradient_evaluations=runs.search_gradient_evaluations,
        search_seconds=runs.search_seconds,
        run_gradient_evaluations=mean("gradient_evaluations"),
        run_seconds=mean("seconds"),
        run_peak_memory_bytes=max(values("peak_memory_bytes"), default=None),
    )
