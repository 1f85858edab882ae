"""Made-up runs of made-up methods, and their summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from tune.compare.analysis import MethodRuns, SharedContext, summarise
from tune.compare.config import CompareOptions
from tune.compare.summary import Summary
from tune.rundir.seed_runs import PointRuns, SeedRun
from tune.space.constraints import Limits

Point = Sequence[tuple[float, float] | None]
"""One point's (ks_statistic, model_utility) per seed; None for a failed run."""

TARGET = {"ks_statistic": 0.9, "model_utility": 0.8}


def method_runs(name: str, points: Sequence[Point], drawn: Sequence[Point] = ()) -> MethodRuns:
    return MethodRuns(
        name=name,
        title=name.upper(),
        search=f"searches/{name}",
        trials=8,
        failed=1,
        pruned=2,
        points=tuple(point_runs(name, number, seeds) for number, seeds in enumerate(points)),
        importances={"method.lr": 0.75, "method.steps": 0.25},
        search_gradient_evaluations=400,
        search_seconds=60,
        retain_points=tuple(drawn_runs(name, number, draws) for number, draws in enumerate(drawn)),
    )


def point_runs(name: str, number: int, seeds: Point) -> PointRuns:
    runs = []
    for seed, values in enumerate(seeds, start=1):
        directory = f"runs/{name}/{number:05d}-seed{seed}"
        if values is None:
            runs.append(SeedRun(seed=seed, directory=directory, reason="the loss became NaN"))
            continue
        metrics = {"ks_statistic": values[0], "model_utility": values[1], "gradient_evaluations": 40.0, "seconds": 2.0}
        runs.append(SeedRun(seed=seed, directory=directory, metrics={**metrics, "peak_memory_bytes": 5e8 + seed}))
    return PointRuns(trial=number, settings={"method.lr": 1e-3}, runs=tuple(runs))


def drawn_runs(name: str, number: int, draws: Point) -> PointRuns:
    """Return the runs of one point on draws of the retain rows, all at seed 1."""
    point = point_runs(name, number, draws)
    runs = [
        run.model_copy(
            update={
                "seed": 1,
                "retain_draw": draw,
                "directory": f"runs/{name}/{number:05d}-retain{draw}",
                "retain_rows_hash": f"hash of draw {draw}",
            }
        )
        for draw, run in enumerate(point.runs, start=1)
    ]
    return point.model_copy(update={"runs": tuple(runs)})


def summary_of(
    methods: Mapping[str, Sequence[Point]],
    seeds: int = 3,
    reference: bool = True,
    limits: Limits = (),
    drawn: Mapping[str, Sequence[Point]] | None = None,
    **settings: object,
) -> Summary:
    shared = SharedContext(
        objectives={"ks_statistic": "min", "model_utility": "max"},
        seeds=tuple(range(1, seeds + 1)),
        target=TARGET,
        reference={"ks_statistic": 0.0, "model_utility": 0.82} if reference else None,
        seed=0,
        limits=limits,
    )
    found = [method_runs(name, points, (drawn or {}).get(name, ())) for name, points in methods.items()]
    if drawn:
        settings["retain_draws"] = len(next(iter(drawn.values()))[0])
    return summarise(found, shared, CompareOptions.model_validate(settings), ["ofmu", "compare"])


@pytest.fixture(scope="session")
def summarised() -> Callable[..., Summary]:
    """Return :func:`summary_of`, which turns made-up points by method into a summary."""
    return summary_of
