"""What a constraint brings a search, on recorded searches of others: the sampler that knows it against their penalty.

    python tests/bench/bench_constraints.py ../shared/data/repselect_search

The folder holds searches of eight methods on Llama-3.1-8B and five data sets: 30 TPE trials each, with the settings and
the answer probability after relearning, under the bound that KL to the original model on general text is at most .01.
A trial that broke the bound was recorded with the original model's value, so all such trials have the same value. Only
searches in which at least two trials share that value are replayed: there it is known which trials broke the bound.

A replay asks a sampler for 30 settings, and answers each with the record of the nearest of the 30 recorded trials, in
the recorded ranges (a rate on a log scale). ``penalty`` tells the sampler the recorded value, as they did.
``constraint`` tells it the violation too. ``random`` draws at random. The violation is 1 or 0, since the records do not
hold the KL.
``graded`` tells how far the setting lies from the nearest setting that keeps the bound, as a violation in KL would.

Columns, as means over searches and seeds: ``reached`` is the best value found that keeps the bound, 0 for the original
model's value and 1 for the best recorded one, after 10, 20 and 30 trials; ``kept`` is the share of the trials after the
tenth that keep the bound.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from tune.study.samplers import make_sampler

RECORDS = Path(__file__).resolve().parents[3] / "shared" / "data" / "repselect_search"
TRIALS = 30
FIRST = 10
WAYS = ("penalty", "constraint", "graded", "random")


@dataclass(frozen=True)
class Recorded:
    """One search of the records."""

    name: str
    settings: dict[str, tuple[float, float, bool]]
    """Lowest and highest value of each numeric setting, and whether its scale is logarithmic."""
    points: np.ndarray[Any, np.dtype[np.float64]]
    """Shape (trials, settings), scaled to 0 ... 1."""
    values: np.ndarray[Any, np.dtype[np.float64]]
    kept: np.ndarray[Any, np.dtype[np.bool_]]
    """Which trials kept the bound."""
    original: float
    """The original model's value."""

    def nearest(self, drawn: Mapping[str, float], among: Any = None) -> tuple[int, float]:
        """Return the nearest recorded trial and its distance. ``among``: a mask of the trials to choose from."""
        point = np.array([_scaled(drawn[name], *spec) for name, spec in self.settings.items()])
        distances = np.linalg.norm(self.points - point, axis=1)
        if among is not None:
            distances = np.where(among, distances, np.inf)
        best = int(np.argmin(distances))
        return best, float(distances[best])

    def reached(self, values: Sequence[float]) -> float:
        """Return how much of the way from the original value to the best recorded one the values have come."""
        best = min([self.original, *values])
        return (self.original - best) / (self.original - float(self.values[self.kept].min()))


def read_searches(folder: Path) -> list[Recorded]:
    """Return the searches of a folder in which it is known which trials broke the bound."""
    found = []
    for path in sorted(folder.glob("*.Llama-3.1-8B.json")):
        for method, record in json.loads(path.read_text(encoding="utf-8")).items():
            search = _recorded(f"{path.name.partition('.')[0]} {method}", record["trials"])
            if search is not None:
                found.append(search)
    return found


def _recorded(name: str, trials: Sequence[Mapping[str, Any]]) -> Recorded | None:
    values = np.array([trial["value"] for trial in trials])
    original, times = Counter(values.tolist()).most_common(1)[0]
    kept = values != original
    if times < 2 or not (values[kept] < original).any():
        return None
    numeric = [key for key, value in trials[0]["params"].items() if isinstance(value, float)]
    settings = {}
    for key in numeric:
        drawn = [float(trial["params"][key]) for trial in trials]
        settings[key] = (min(drawn), max(drawn), max(drawn) > 10 * min(drawn))
    points = [[_scaled(trial["params"][key], *spec) for key, spec in settings.items()] for trial in trials]
    return Recorded(name, settings, np.array(points), values, kept, float(original))


def _scaled(value: float, low: float, high: float, log: bool) -> float:
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low) if high > low else 0.5


def replay(search: Recorded, way: str, seed: int) -> tuple[list[float], list[bool]]:
    """Return the value and whether the bound was kept, for each trial of a replay."""
    study = optuna.create_study()
    values, kept = [], []
    for number in range(TRIALS):
        study.sampler = make_sampler("random" if way == "random" else "tpe", seed, number, TRIALS)
        trial = study.ask()
        drawn = {key: trial.suggest_float(key, low, high, log=log) for key, (low, high, log) in search.settings.items()}
        index, _ = search.nearest(drawn)
        is_kept, value = bool(search.kept[index]), float(search.values[index])
        if way in ("constraint", "graded"):
            _, distance = search.nearest(drawn, search.kept)
            graded = distance / math.sqrt(len(search.settings))
            trial.set_constraint("kl:max", -1.0 if is_kept else 1.0 if way == "constraint" else graded)
        study.tell(trial, value)
        values.append(value if is_kept else math.inf)
        kept.append(is_kept)
    return values, kept


def table(searches: Sequence[Recorded], seeds: int) -> Iterator[list[str]]:
    """Yield a header and one row per way to search."""
    yield ["", f"reached after {FIRST}", "after 20", f"after {TRIALS}", "kept"]
    for way in WAYS:
        runs = [(search, *replay(search, way, seed)) for search in searches for seed in range(seeds)]
        reached = [
            statistics.fmean(search.reached(values[:count]) for search, values, _ in runs)
            for count in (FIRST, 20, TRIALS)
        ]
        share = statistics.fmean(statistics.fmean(kept[FIRST:]) for _, _, kept in runs)
        yield [way, *(f"{value:.3f}" for value in (*reached, share))]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=RECORDS)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    if not arguments.folder.is_dir():
        print(f"There are no records in {arguments.folder}: name their folder")
        return
    searches = read_searches(arguments.folder)
    broken = statistics.fmean(1 - search.kept.mean() for search in searches)
    print(f"{len(searches)} searches, in which {broken:.0%} of the trials broke the bound")
    for row in table(searches, arguments.seeds):
        print("  ".join(f"{cell:>16}" for cell in row), flush=True)


if __name__ == "__main__":
    main()
