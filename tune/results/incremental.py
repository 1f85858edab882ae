"""What a running search knows of its trials, kept up with every end rather than made anew from all of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tune.results.pareto import GrowingFront, Points, as_costs, hypervolume, reference_point
from tune.results.result import SearchResult
from tune.results.tables import Row, front_table, row_of, table_of
from tune.study.baselines import PRIOR

if TYPE_CHECKING:
    import pandas as pd
    from optuna.trial import FrozenTrial

    from tune.config import SearchConfig
    from tune.rundir.search_dir import RunDirectory


class Book:
    """The rows, counts, front and hypervolume of a search's finished trials.

    :meth:`result` equals :meth:`tune.results.result.SearchResult.of` for the same trials; :meth:`enter` costs the same
    after ten thousand trials as after ten, but for the size of the front.
    """

    def __init__(self, run: RunDirectory, config: SearchConfig, finished: Iterable[FrozenTrial] = ()) -> None:
        self._run, self._config = run, config
        self._names, self._directions = list(config.objectives), list(config.objectives.values())
        self.counts: Counter[str] = Counter()
        """Finished trials by state: complete, failed, pruned."""
        self._rows: dict[int, Row] = {}
        self._front = GrowingFront(len(self._names))
        self._worst = np.full((1, len(self._names)), -np.inf)
        self._examples: dict[Any, int] = {}
        self._volume: tuple[float, dict[str, float]] | None = None
        for trial in finished:
            self.enter(trial)

    @property
    def front(self) -> set[int]:
        """Return the numbers of the front's trials."""
        return set(self._front.names)

    def enter(self, trial: FrozenTrial) -> list[int]:
        """Take in a trial that has ended, once; return the numbers of those that are no front members for it.

        They are the members that it dominates, or its own number.
        """
        row = row_of(trial)
        self._rows[trial.number] = row
        if row["state"] != PRIOR:
            self.counts[row["state"]] += 1
        for kind in _kinds(row):
            self._examples[kind] = min(self._examples.get(kind, trial.number), trial.number)
        if row["state"] != "complete":
            return [trial.number]
        costs = as_costs([[row["metrics"].get(name, np.nan) for name in self._names]], self._directions)
        gone = self._front.add(trial.number, costs[0])
        if gone != [trial.number] or (costs > self._worst).any():
            self._worst = np.fmax(self._worst, costs)
            self._volume = None
        return gone

    def result(self, running: Sequence[FrozenTrial] = ()) -> SearchResult:
        """Return the search as it stands now, with the trials at work."""
        going = [row_of(trial) for trial in running]
        everything = [*self._rows.values(), *going]
        # Columns and their types come from all rows, so one of each kind stands beside the front's own.
        few = [*(self._rows[number] for number in {*self._front.names, *self._examples.values()}), *going]

        def table(rows: list[Row]) -> pd.DataFrame:
            return table_of(sorted(rows, key=lambda row: int(row["trial"])), self._config)

        return SearchResult(
            self._run.path,
            self._config,
            *self._hypervolume(),
            make_trials=lambda: table(everything),
            make_front=lambda: front_table(table(few), self._config),
            uri=self._run.uri,
        )

    def _hypervolume(self) -> tuple[float, dict[str, float]]:
        if self._volume is None:
            seen: Points = self._worst if self._front.names else self._worst[:0]
            corner = reference_point(self._names, seen, self._directions)
            own = as_costs([corner.tolist()], self._directions)[0]
            volume = hypervolume(self._front.costs, corner)
            self._volume = volume, dict(zip(self._names, own.tolist(), strict=True))
        return self._volume


def _kinds(row: Row) -> Iterable[Any]:
    """Return what a row brings to its table's columns: which there are, which may be empty, and the types in them."""
    yield row["role"], bool(row["origin"]), frozenset(row["overrides"]), frozenset(row["metrics"])
    for part in ("overrides", "metrics"):
        for name, value in row[part].items():
            yield part, name, type(value)


class Allowance:
    """Says when the next of some dear and repeated work is due, so that it takes a small share of all time.

    Work that takes little is always due; work that takes long waits until enough time has gone by.
    """

    def __init__(self, share: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._burst, self._clock = share, burst, clock
        self._credit, self._since = burst, clock()

    def is_due(self) -> bool:
        """Return whether the work may be done now: its earlier costs have been paid by the time since."""
        now = self._clock()
        self._credit = min(self._burst, self._credit + self._share * (now - self._since))
        self._since = now
        return self._credit > 0

    def spend(self, seconds: float) -> None:
        """Take note of what the work has cost."""
        self._credit -= seconds
