"""What early stopping saves: gradient evaluations to the hypervolume of a search that stops no trial.

    python tests/bench/bench_rungs.py                            # made-up curves: two minutes on one core
    python tests/bench/bench_rungs.py --table tests/bench/quickstart_curves.csv

The table holds 114 real trials of the quickstart, made by ``make_curves.py``, numbers rounded to six digits; any other
in the form that :func:`tune.curves.read_curves` reads will do.

Per seed, a full search runs TRIALS trials to their ends and spends B; its hypervolume is the mark. The same search with
early stopping then draws as many trials as it needs. Columns: ``ratio`` its evaluations at the mark over B; ``own`` the
full search's own at the mark over B, which is what the ratio would be without early stopping; the hypervolume at B/2
over the mark with and without early stopping; the share of trials stopped. Random search draws the same trials in the
same order both times, from a table without replacement; the full search takes half of the table.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna

from tune.curves import SYNTHETIC_OBJECTIVES, SYNTHETIC_SETTINGS, Curve, read_curves, synthetic_curve
from tune.pareto import as_costs, reference_point
from tune.rungs import RungScheduler, RungSettings
from tune.sampling import make_sampler
from tune.simulate import CurveSearcher, OptunaSearcher, Simulation, TableSearcher, simulate

TRIALS = 64
CAP = 1.25
WORKERS = 4
SEEDS = 10
OBJECTIVES = SYNTHETIC_OBJECTIVES
WORST = reference_point(list(OBJECTIVES), as_costs([], list(OBJECTIVES.values())), list(OBJECTIVES.values()))


def optuna_searcher(sampler: str, seed: int) -> OptunaSearcher:
    """Return a search over made-up curves by one of the product's samplers."""

    def curve_of(trial: optuna.Trial) -> Curve:
        settings = [trial.suggest_float(name, 0, 1) for name in SYNTHETIC_SETTINGS]
        return synthetic_curve(settings, 100_000 * seed + trial.number)

    study = optuna.create_study(directions=["minimize", "maximize"])
    return OptunaSearcher(study, curve_of, lambda number: make_sampler(sampler, seed, number, TRIALS))


@dataclass(frozen=True)
class Row:
    """What one seed gave, in the order of the columns."""

    ratio: float
    own: float
    half_with: float
    half_without: float
    stopped: float


def volume_at(search: Simulation, spent: float) -> float:
    """Return the hypervolume once ``spent`` gradient evaluations are spent."""
    times, volumes = search.hypervolumes(WORST)
    return float(max(volumes[times <= spent], default=0.0))


def compare(make: Callable[[int], CurveSearcher], seed: int, settings: RungSettings, trials: int) -> Row:
    """Run one seed's search twice; the one with early stopping is given up after CAP × B."""
    full = simulate(make(seed), OBJECTIVES, trials=trials, workers=WORKERS)
    budget, mark = full.gradient_evaluations, full.hypervolumes(WORST)[1][-1]
    scheduler = RungScheduler(OBJECTIVES, settings)
    some = simulate(make(seed), OBJECTIVES, trials=10**6, workers=WORKERS, scheduler=scheduler, budget=CAP * budget)
    return Row(
        ratio=some.spent_until(mark, WORST) / budget,
        own=full.spent_until(mark, WORST) / budget,
        half_with=volume_at(some, budget / 2) / mark,
        half_without=volume_at(full, budget / 2) / mark,
        stopped=statistics.mean(trial.state == "pruned" for trial in some.trials),
    )


def report(title: str, rows: list[Row], seconds: float) -> None:
    """Print a table with one line per seed and one of medians."""
    print(f"\n{title} ({seconds:.0f} s)\nseed    ratio  own    half with / without  stopped")
    medians = Row(*(statistics.median(getattr(row, name) for row in rows) for name in Row.__dataclass_fields__))
    for label, row in [*enumerate(rows), ("median", medians)]:
        print(f"{label!s:<8}{row.ratio:.2f}   {row.own:.2f}   {row.half_with:.3f} / {row.half_without:.3f}", end="")
        print(f"        {row.stopped:.0%}")


def main() -> None:
    """Run the made-up benchmark under random search and TPE, or random search over a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    for name, field in RungSettings.model_fields.items():
        if name != "enabled":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(field.default), default=field.default)
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in RungSettings.model_fields if name != "enabled"}
    settings = RungSettings.model_validate(given)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    print(f"rungs at {', '.join(f'{level:.3g}' for level in settings.levels)}; {given}")
    searches: dict[str, tuple[Callable[[int], CurveSearcher], int]] = {
        f"made-up curves, {name}, {TRIALS} trials": ((lambda seed, name=name: optuna_searcher(name, seed)), TRIALS)
        for name in ("random", "tpe")
    }
    if arguments.table:
        curves = read_curves(arguments.table, list(OBJECTIVES))
        half = len(curves) // 2
        title = f"{arguments.table.name}, random, {half} of {len(curves)} trials"
        searches = {title: ((lambda seed: TableSearcher(curves, seed)), half)}
    for title, (make, trials) in searches.items():
        started = time.perf_counter()
        rows = [compare(make, seed, settings, trials) for seed in range(arguments.seeds)]
        report(title, rows, time.perf_counter() - started)


if __name__ == "__main__":
    main()
