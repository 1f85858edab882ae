"""What early stopping saves: gradient evaluations to the hypervolume of a search that stops no trial.

    python tests/bench/bench_rungs.py                            # made-up curves: two minutes on one core
    python tests/bench/bench_rungs.py --table tests/bench/quickstart_curves.csv
    python tests/bench/bench_rungs.py --table lcdb_819.csv lcdb_953.csv --objectives accuracy:max log_loss:min

``quickstart_curves.csv`` holds 240 real trials of the quickstart, made by ``make_curves.py``, numbers rounded to six
digits; their settings are in ``quickstart_settings.csv``. ``make_lcdb.py`` makes tables of a public benchmark's curves.
Any other in the form that :func:`simulation.curves.read_curves` reads will do.

Per seed, a full search runs TRIALS trials to their ends and spends B; its hypervolume is the mark. The same search with
early stopping then draws as many trials as it needs. Columns: ``ratio`` its evaluations at the mark over B; ``own`` the
full search's own at the mark over B, which is what the ratio would be without early stopping; the hypervolume at B/2
over the mark with and without early stopping; the share of trials stopped; ``99%`` its evaluations at .99 of the mark
over B. Random search draws the same trials in the same order both times, from a table without replacement; the full
search takes TRIALS of the table, or a third of a smaller one, so that the other does not run out of trials; --trials
says otherwise.

How far a trial's start tells its end, by ``--analyse``: for each fraction of the rounds, the rank correlation of the
objectives with the final ones, the rank of the final front's members at the rung (0 best, 1 worst) and their share in
its lower half; for comparison, the ratio of an oracle that runs every trial to the first rung, and past it only those
that will be on the front of the trials drawn so far. docs/scale.md has the results.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from scipy.stats import spearmanr

from simulation.curves import SYNTHETIC_OBJECTIVES, SYNTHETIC_SETTINGS, Curve, read_curves, synthetic_curve
from simulation.simulate import CurveSearcher, OptunaSearcher, Simulation, TableSearcher, simulate
from tune.early_stopping.config import EarlyStoppingConfig
from tune.early_stopping.rungs import RungScheduler
from tune.pareto import Points, as_costs, front_mask, reference_point
from tune.space.objectives import Direction
from tune.study.samplers import make_sampler

TRIALS = 64
CAP = 1.25
WORKERS = 4
SEEDS = 10
OBJECTIVES = SYNTHETIC_OBJECTIVES


def optuna_searcher(sampler: str, seed: int) -> OptunaSearcher:
    """Return a search over made-up curves by one of the product's samplers."""

    def curve_of(trial: optuna.Trial) -> Curve:
        settings = [trial.suggest_float(name, 0, 1) for name in SYNTHETIC_SETTINGS]
        return synthetic_curve(settings, 100_000 * seed + trial.number)

    study = optuna.create_study(directions=["minimize", "maximize"])
    return OptunaSearcher(study, curve_of, lambda number: make_sampler(sampler, seed, number, TRIALS))


@dataclass(frozen=True)
class Task:
    """A searcher per seed, what it optimises, and the trials of a full search."""

    make: Callable[[int], CurveSearcher]
    directions: Mapping[str, Direction]
    worst: Points
    trials: int


def made_up(sampler: str, trials: int | None) -> Task:
    """Return the search of made-up curves by one sampler."""
    signs = list(OBJECTIVES.values())
    worst = reference_point(list(OBJECTIVES), as_costs([], signs), signs)
    return Task(lambda seed: optuna_searcher(sampler, seed), OBJECTIVES, worst, trials or TRIALS)


def tabulated(curves: list[Curve], directions: Mapping[str, Direction], trials: int | None) -> Task:
    """Return random search over a table; an unbounded objective's worst value is the table's."""
    ends = np.array([curve.values[-1] for curve in curves])
    signs = list(directions.values())
    worst = reference_point(list(directions), as_costs(ends[np.isfinite(ends).all(axis=1)], signs), signs)
    trials = trials or min(TRIALS, len(curves) // 3)
    return Task(lambda seed: TableSearcher(curves, seed), directions, worst, trials)


@dataclass(frozen=True)
class Row:
    """What one seed gave, in the order of the columns."""

    ratio: float
    own: float
    half_with: float
    half_without: float
    stopped: float
    nearly: float


def volume_at(search: Simulation, spent: float, worst: Points) -> float:
    """Return the hypervolume once ``spent`` gradient evaluations are spent."""
    times, volumes = search.hypervolumes(worst)
    return float(max(volumes[times <= spent], default=0.0))


def compare(task: Task, seed: int, scheduler: RungScheduler) -> Row:
    """Run one seed's search twice; the one with early stopping is given up after CAP × B."""
    full = simulate(task.make(seed), task.directions, trials=task.trials, workers=WORKERS)
    budget, mark = full.gradient_evaluations, full.hypervolumes(task.worst)[1][-1]
    some = simulate(
        task.make(seed), task.directions, trials=10**6, workers=WORKERS, scheduler=scheduler, budget=CAP * budget
    )
    return Row(
        ratio=some.spent_until(mark, task.worst) / budget,
        own=full.spent_until(mark, task.worst) / budget,
        half_with=volume_at(some, budget / 2, task.worst) / mark,
        half_without=volume_at(full, budget / 2, task.worst) / mark,
        stopped=statistics.mean(trial.state == "pruned" for trial in some.trials),
        nearly=some.spent_until(0.99 * mark, task.worst) / budget,
    )


def report(title: str, rows: list[Row], seconds: float) -> None:
    """Print a table with one line per seed and one of medians."""
    print(f"\n{title} ({seconds:.0f} s)\nseed    ratio  own    half with / without  stopped  99%")
    medians = Row(*(statistics.median(getattr(row, name) for row in rows) for name in Row.__dataclass_fields__))
    for label, row in [*enumerate(rows), ("median", medians)]:
        print(f"{label!s:<8}{row.ratio:.2f}   {row.own:.2f}   {row.half_with:.3f} / {row.half_without:.3f}", end="")
        print(f"        {row.stopped:4.0%}     {row.nearly:.2f}", flush=True)


def analyse(curves: list[Curve], directions: Mapping[str, Direction]) -> None:
    """Print how well the order at a rung foretells the final one, for rungs at several fractions."""
    signs = list(directions.values())
    curves = [curve for curve in curves if np.isfinite(curve.values[-1]).all()]
    ends = as_costs([curve.values[-1] for curve in curves], signs)
    print(f"\nfraction  cost  rank correlation ({', '.join(directions)})  members' rank  lower half  oracle")
    for level in (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4):
        places = [max(1, math.ceil(level * curve.rounds - 1e-9)) - 1 for curve in curves]
        at = as_costs([curve.values[place] for curve, place in zip(curves, places, strict=True)], signs)
        share = np.array([curve.costs[place] / curve.costs[-1] for curve, place in zip(curves, places, strict=True)])
        known = [f"{spearmanr(one, two, nan_policy='omit')[0]:.2f}" for one, two in zip(at.T, ends.T, strict=True)]
        ranks, ratios = [], []
        for seed in range(SEEDS):
            drawn = np.random.default_rng(seed).permutation(len(curves))[: min(TRIALS, len(curves) // 3)]
            above = np.array(
                [((at[drawn] <= row).all(axis=1) & (at[drawn] < row).any(axis=1)).sum() for row in at[drawn]]
            )
            ranks += [((above < above[i]).mean()) for i in np.flatnonzero(front_mask(ends[drawn]))]
            full = np.array([curves[i].costs[-1] for i in drawn])
            member = [front_mask(ends[drawn][: count + 1])[-1] for count in range(len(drawn))]
            ratios.append(np.where(member, full, full * share[drawn]).sum() / full.sum())
        low = float(np.mean(np.array(ranks) > 0.5))
        print(f"{level:<10.3f}{share.mean():.2f}  {', '.join(known):<42}{statistics.mean(ranks):.2f}", end="")
        print(f"           {low:4.0%}        {statistics.median(ratios):.2f}", flush=True)


def directions_of(given: list[str]) -> dict[str, Direction]:
    """Return the objectives that the command line names as ``name:min`` or ``name:max``."""
    named = [text.partition(":") for text in given]
    return {name: "max" if direction == "max" else "min" for name, _, direction in named}


def main() -> None:
    """Run the made-up benchmark under random search and TPE, or random search over tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, nargs="+", default=[])
    parser.add_argument("--objectives", nargs="+", default=[f"{name}:{end}" for name, end in OBJECTIVES.items()])
    parser.add_argument("--trials", type=int)
    parser.add_argument("--analyse", action="store_true")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    for name, field in EarlyStoppingConfig.model_fields.items():
        if name != "enabled":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(field.default), default=field.default)
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in EarlyStoppingConfig.model_fields if name != "enabled"}
    settings = EarlyStoppingConfig.model_validate(given)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    print(f"rungs at {', '.join(f'{level:.3g}' for level in settings.levels)}; {given}")
    tasks = (
        {}
        if arguments.table
        else {f"made-up curves, {name}": made_up(name, arguments.trials) for name in ("random", "tpe")}
    )
    directions = directions_of(arguments.objectives)
    for path in arguments.table:
        curves = read_curves(path, list(directions))
        tasks[f"{path.name}, random, of {len(curves)} trials"] = tabulated(curves, directions, arguments.trials)
        if arguments.analyse:
            analyse(curves, directions)
    for title, task in tasks.items():
        started = time.perf_counter()
        rows = [compare(task, s, RungScheduler(task.directions, settings)) for s in range(arguments.seeds)]
        report(f"{title}; full search: {task.trials}", rows, time.perf_counter() - started)


if __name__ == "__main__":
    main()
