"""Which sampler should be the default: trials to random search's final hypervolume, on problems with known answers.

    python tests/bench/bench_samplers.py                      # three minutes on one core, GP on two seeds
    python tests/bench/bench_samplers.py --dimensions 30      # ZDT as published, instead of a search's seven settings
    python tests/bench/bench_samplers.py --problems quickstart --samplers random tpe

``quickstart`` is a surrogate on the preset's own space, conditions included: a random forest (scikit-learn, fixed seed)
fitted to the settings and final objectives of the 240 real trials in ``quickstart_settings.csv``, those whose curves
are in ``quickstart_curves.csv``.

For each problem and seed, random search runs TRIALS trials; its hypervolume is the mark. Each sampler, as a search
makes it, then runs until it reaches the mark, one trial at a time and with four in flight. A ratio is the trials it
took over TRIALS, infinite where it was given up at CAP × TRIALS; random search meets marks of its own other seeds.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy.stats import quantile_test
from sklearn.ensemble import RandomForestRegressor

from ofmu.config.files import read_mapping
from simulation.curves import SYNTHETIC_SETTINGS, synthetic_curve
from tune.config import SearchConfig, search_config
from tune.pareto import hypervolume
from tune.space.draw import draw
from tune.study.samplers import make_sampler

TRIALS = 64
CAP = 1.5
SEEDS = 10
GP_SEEDS = 2
IN_FLIGHT = (1, 4)
QUICKSTART = Path(__file__).with_name("quickstart_settings.csv")
CHOICES = ["none", "projection", "cosine"]
"""Values of ``method.decorrelation`` in the order of their strength."""
Objectives = tuple[float, float]


def zdt(x: Sequence[float], shape: Callable[[float, float], float]) -> Objectives:
    """Return the two costs of a ZDT function (Zitzler, Deb and Thiele 2000), ``shape`` of f₁ and g giving h."""
    g = 1 + 9 * sum(x[1:]) / (len(x) - 1)
    return x[0], g * shape(x[0], g)


def zdt1(x: Sequence[float]) -> Objectives:
    """Convex front."""
    return zdt(x, lambda f, g: 1 - math.sqrt(f / g))


def zdt2(x: Sequence[float]) -> Objectives:
    """Concave front."""
    return zdt(x, lambda f, g: 1 - (f / g) ** 2)


def zdt3(x: Sequence[float]) -> Objectives:
    """Front in five pieces."""
    return zdt(x, lambda f, g: 1 - math.sqrt(f / g) - f / g * math.sin(10 * math.pi * f))


def dtlz2(x: Sequence[float]) -> Objectives:
    """A quarter circle (Deb, Thiele, Laumanns and Zitzler 2002), two objectives."""
    radius = 1 + sum((value - 0.5) ** 2 for value in x[1:])
    return radius * math.cos(x[0] * math.pi / 2), radius * math.sin(x[0] * math.pi / 2)


def synthetic(x: Sequence[float]) -> Objectives:
    """Return the end of a made-up learning curve, its noise set by the settings."""
    end = synthetic_curve(x, int(sum(x) * 1e9)).values[-1]
    return float(end[0]), 1 - float(end[1])


@cache
def forest() -> tuple[list[str], RandomForestRegressor]:
    """Return the names of the quickstart's settings, and the surrogate from their values to two costs."""
    with QUICKSTART.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = [name for name in rows[0] if name.startswith("method.")]
    settings = [[encoded(row[name]) for name in names] for row in rows]
    ends = [[float(row["ks_statistic"]), 1 - float(row["model_utility"])] for row in rows]
    return names, RandomForestRegressor(60, min_samples_leaf=2, random_state=0, n_jobs=1).fit(settings, ends)


def encoded(value: str | float | None) -> float:
    """Return a setting as a number that keeps its order; -1 for a setting that another one switches off."""
    if value is None or value == "":
        return -1.0
    return float(CHOICES.index(value)) if isinstance(value, str) and value in CHOICES else float(value)


def quickstart(settings: Mapping[str, Any]) -> Objectives:
    """Return what the surrogate makes of settings of the quickstart."""
    names, surrogate = forest()
    ks_statistic, lost = surrogate.predict([[encoded(settings.get(name)) for name in names]])[0]
    return float(ks_statistic), float(lost)


@cache
def preset() -> SearchConfig:
    """Return the quickstart's config."""
    return search_config(read_mapping("quickstart"))


def quickstart_settings(trial: optuna.Trial) -> dict[str, Any]:
    """Draw settings from the quickstart's space."""
    return draw(trial, preset().search.space, preset().unlearn)


def unit_cube(dimensions: int) -> Callable[[optuna.Trial], list[float]]:
    """Return the draw of a point of the unit cube."""
    return lambda trial: [trial.suggest_float(f"x{index}", 0, 1) for index in range(dimensions)]


@dataclass(frozen=True)
class Problem:
    """Two costs on a space, and the worst values that they can take."""

    evaluate: Callable[[Any], Objectives]
    suggest: Callable[[optuna.Trial], Any]
    worst: Objectives


def problems(dimensions: int) -> dict[str, Problem]:
    """Return the test problems by name."""
    cube = unit_cube(dimensions)
    return {
        "ZDT1": Problem(zdt1, cube, (1.0, 10.0)),
        "ZDT2": Problem(zdt2, cube, (1.0, 10.0)),
        "ZDT3": Problem(zdt3, cube, (1.0, 10.0)),
        "DTLZ2": Problem(dtlz2, cube, (1 + (dimensions - 1) / 4,) * 2),
        "synthetic": Problem(synthetic, unit_cube(len(SYNTHETIC_SETTINGS)), (1.0, 1.0)),
        "quickstart": Problem(quickstart, quickstart_settings, (1.0, 1.0)),
    }


def sampler_of(name: str, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial as a search makes it, and multivariate TPE made in the same way."""
    if name != "tpe-group":
        return make_sampler(name, seed, number, TRIALS)
    derived = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=derived, n_startup_trials=10, multivariate=True, group=True)


def run(problem: Problem, name: str, seed: int, in_flight: int, trials: int, mark: float = math.inf) -> list[float]:
    """Return the hypervolume after each trial told, up to ``trials`` or the mark."""
    study = optuna.create_study(directions=["minimize", "minimize"])
    live: deque[tuple[optuna.Trial, Objectives]] = deque()
    costs, volumes = np.empty((0, 2)), [0.0]
    while len(volumes) <= trials and volumes[-1] < mark:
        while len(live) < in_flight:
            study.sampler = sampler_of(name, seed, len(study.get_trials(deepcopy=False)))
            trial = study.ask()
            live.append((trial, problem.evaluate(problem.suggest(trial))))
        trial, values = live.popleft()
        study.tell(trial, list(values))
        costs = np.vstack((costs, values))
        volumes.append(hypervolume(costs, np.array(problem.worst)))
    return volumes[1:]


def ratios(problem: Problem, name: str, in_flight: int, seeds: int) -> list[float]:
    """Return, per seed, the trials that the sampler needs to random search's mark over TRIALS; infinity for never."""
    found = []
    for seed in range(seeds):
        mark = run(problem, "random", 1000 + seed, 1, TRIALS)[-1]
        volumes = run(problem, name, seed, in_flight, int(CAP * TRIALS), mark)
        found.append(len(volumes) / TRIALS if volumes[-1] >= mark else math.inf)
    return found


def median_interval(found: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median by its order statistics, open to -infinity or infinity for few seeds."""
    low, high = quantile_test(found, p=0.5).confidence_interval(0.95)
    return (-math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high)


def main() -> None:
    """Print one line per sampler, problem and number in flight, and medians over all problems with 95 % intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--gp-seeds", type=int, default=GP_SEEDS)
    parser.add_argument("--samplers", nargs="+", default=["random", "nsga2", "tpe", "tpe-group", "gp"])
    parser.add_argument("--problems", nargs="+", default=list(problems(7)), choices=list(problems(7)))
    arguments = parser.parse_args()
    chosen = {name: problem for name, problem in problems(arguments.dimensions).items() if name in arguments.problems}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    print(f"trials to the hypervolume of random search's {TRIALS}, as a ratio; {arguments.dimensions} settings")
    for name in arguments.samplers:
        started, seeds = time.perf_counter(), arguments.gp_seeds if name == "gp" else arguments.seeds
        for in_flight in IN_FLIGHT:
            every: list[float] = []
            cells = []
            for label, problem in chosen.items():
                found = ratios(problem, name, in_flight, seeds)
                every += found
                low, high = median_interval(found)
                cells.append(f"{label} {statistics.median(found):.2f} [{low:.2f}, {high:.2f}]")
            median, half = statistics.median(every), statistics.mean(ratio <= 0.5 for ratio in every)
            print(
                f"{name:<10}{in_flight} in flight, {seeds:2} seeds: median {median:.2f}, {half:4.0%} at most .50",
                end="",
            )
            print(" | " + ", ".join(cells), flush=True)
        print(f"{'':<10}{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
