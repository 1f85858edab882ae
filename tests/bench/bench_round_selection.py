"""What it brings that a trial may stand for an earlier round: gradient evaluations to the hypervolume of a full search.

    python tests/bench/bench_round_selection.py                  # the quickstart's table, then made-up curves under TPE

Per seed, a full search runs its trials to their ends, each of which stands for its last round, and spends B; its
hypervolume is the mark. The same search with ``search.checkpoint_selection`` then draws as many trials as it needs, up
to 1.25 B. Random search draws the same trials in the same order both times. Columns: ``share`` the evaluations at the
mark over B, the median of ten seeds, and how many seeds never reached it; the hypervolume at B/2 and at B over the
mark, means; the share of trials stopped.

Rows: ``last round`` is the full search itself. ``all scored rounds`` puts each of them on the front, which is what
selection could reach at best. ``own hypervolume`` lets a trial stand for the round that dominates most by itself.
``gain`` is the product without a stop margin: the round that adds most to the front. The others have the margin.

The scores of a round are those on all rows, since the table has no others. A real search decides by the scores of a few
rows, which are noisier, so it gains less. The table's utility has no ROUGE before the last round.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna

from bench_rungs import CAP, WORKERS, Task, made_up, tabulated, volume_at
from simulation.curves import SYNTHETIC_OBJECTIVES, Curve, read_curves
from simulation.simulate import CurveSearcher, Selection, Simulation, simulate
from tune.checkpoint_selection.archive import RoundArchive, Scored
from tune.checkpoint_selection.config import CheckpointSelectionConfig
from tune.pareto import as_costs, hypervolume, reference_point

TABLE = Path(__file__).with_name("quickstart_curves.csv")
MARGINS = (0.1, 0.15, 0.2, 0.3)


class OwnVolume(RoundArchive):
    """Selects the round that dominates most by itself."""

    def select(self, trial: int, candidates: Mapping[int, Scored]) -> int:
        """Return that round; of equal ones the latest."""
        signs = list(self._objectives.values())
        names = list(self._objectives)
        worst = reference_point(names, as_costs([], signs), signs)
        volumes = {
            round: hypervolume(as_costs([[each.values[name] or 0.0 for name in names]], signs), worst)
            for round, each in candidates.items()
        }
        return max(candidates, key=lambda round: (volumes[round], round))


@dataclass
class Recorded:
    """A searcher that remembers the curves that it gave."""

    searcher: CurveSearcher
    curves: list[Curve]

    def ask(self) -> Curve | None:
        """Return the next curve."""
        curve = self.searcher.ask()
        if curve is not None:
            self.curves.append(curve)
        return curve

    def tell(self, number: int, state: object, values: tuple[float, ...]) -> None:
        """Pass on how a trial ended."""
        self.searcher.tell(number, state, values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Row:
    """What one seed gave."""

    share: float
    half: float
    whole: float
    stopped: float


def row_of(search: Simulation, budget: float, mark: float, task: Task) -> Row:
    """Return the columns of one search."""
    half, whole = (volume_at(search, spent, task.worst) / mark for spent in (budget / 2, budget))
    stopped = statistics.mean(trial.state == "pruned" for trial in search.trials)
    return Row(search.spent_until(mark, task.worst) / budget, half, whole, stopped)


def all_scored(task: Task, full: Simulation, curves: list[Curve], budget: float, mark: float) -> Row:
    """Return the columns of the full search if each scored round of its trials were on the front."""
    config, signs = CheckpointSelectionConfig(), list(task.directions.values())
    points, spent, volumes = [], [], []
    for trial in full.trials:
        curve = curves[trial.number]
        rounds = (*config.scored_rounds(curve.rounds), curve.rounds)
        points += [curve.values[round - 1] for round in rounds if np.isfinite(curve.values[round - 1]).all()]
        spent.append(trial.spent)
        volumes.append(hypervolume(as_costs(points, signs), task.worst))
    reached = [cost for cost, volume in zip(spent, volumes, strict=True) if volume >= mark - 1e-12]
    half = max((volume for cost, volume in zip(spent, volumes, strict=True) if cost <= budget / 2), default=0.0)
    return Row((reached[0] if reached else float("inf")) / budget, half / mark, volumes[-1] / mark, 0.0)


def compare(task: Task, seed: int) -> dict[str, Row]:
    """Run one seed's searches."""
    recorded = Recorded(task.make(seed), [])
    full = simulate(recorded, task.directions, trials=task.trials, workers=WORKERS)
    budget, mark = full.gradient_evaluations, float(full.hypervolumes(task.worst)[1][-1])
    rows = {"last round": row_of(full, budget, mark, task)}
    rows["all scored rounds"] = all_scored(task, full, recorded.curves, budget, mark)
    archives: dict[str, RoundArchive] = {
        "own hypervolume": OwnVolume(task.directions, None),
        "gain": RoundArchive(task.directions, None),
        **{f"gain, margin {margin}": RoundArchive(task.directions, margin) for margin in MARGINS},
    }
    for name, archive in archives.items():
        search = simulate(
            task.make(seed),
            task.directions,
            trials=10**6,
            workers=WORKERS,
            selection=Selection(archive),
            budget=CAP * budget,
        )
        rows[name] = row_of(search, budget, mark, task)
    return rows


def report(title: str, seeds: list[dict[str, Row]], seconds: float) -> None:
    """Print one line per rule."""
    print(f"\n{title} ({seconds:.0f} s)\n{'':<20}share  never  at half  at all  stopped")
    for name in seeds[0]:
        rows = [each[name] for each in seeds]
        never = sum(row.share == float("inf") for row in rows)
        means = (statistics.mean(getattr(row, field) for row in rows) for field in ("half", "whole", "stopped"))
        half, whole, stopped = means
        share = statistics.median(row.share for row in rows)
        print(f"{name:<20}{share:<7.2f}{never:<7}{half:<9.3f}{whole:<8.3f}{stopped:.0%}", flush=True)


def main() -> None:
    """Run the benchmark on the quickstart's table under random search, and on made-up curves under TPE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--trials", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only-table", action="store_true")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    curves = read_curves(arguments.table, list(SYNTHETIC_OBJECTIVES))
    tasks = {
        f"{arguments.table.name}, random, of {len(curves)} trials; full search: {count}": tabulated(
            curves, SYNTHETIC_OBJECTIVES, count
        )
        for count in arguments.trials
    }
    if not arguments.only_table:
        tasks["made-up curves, tpe; full search: 64"] = made_up("tpe", None)
    for title, task in tasks.items():
        started = time.perf_counter()
        seeds = [compare(task, seed) for seed in range(arguments.seeds)]
        report(title, seeds, time.perf_counter() - started)


if __name__ == "__main__":
    main()
