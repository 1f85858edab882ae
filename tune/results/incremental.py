"""The result of a running search, updated with every trial that ends instead of computed from all trials."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tune.pareto import GrowingFront, Points, as_costs, hypervolume, reference_point
from tune.results.result import SearchResult
from tune.results.tables import TrialRow, front_table, table_of
from tune.study.baselines import PRIOR, TARGET

if TYPE_CHECKING:
    import pandas as pd
    from optuna.trial import FrozenTrial

    from tune.config import SearchConfig
    from tune.rundir.search_dir import RunDirectory
    from tune.space.constraints import Limits


class RunningResult:
    """Rows, counts, front and hypervolume of a search's finished trials.

    :meth:`result` equals :meth:`tune.results.result.SearchResult.from_trials` for the same trials. The time of
    :meth:`add` grows with the size of the front, and not with the number of trials.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: SearchConfig,
        finished: Iterable[FrozenTrial] = (),
        limits: Callable[[], Limits] = tuple,
    ) -> None:
        self._run, self._config, self._limits = run, config, limits
        self._names, self._directions = list(config.objectives), list(config.objectives.values())
        self.counts: Counter[str] = Counter()
        """Finished trials by state: complete, failed, pruned. Trials of earlier searches are not counted."""
        self._rows: dict[int, TrialRow] = {}
        self._front = GrowingFront(len(self._names))
        self._worst = np.full((1, len(self._names)), -np.inf)
        """The highest cost of all complete trials in each objective, shape (1, objectives)."""
        self._examples: dict[Hashable, int] = {}
        """The lowest number of a trial that brings a column, or a type of values, to the table."""
        self._volume: tuple[float, dict[str, float]] | None = None
        self._seconds: list[float] = []
        for trial in finished:
            self.add(trial)

    @property
    def front(self) -> set[int]:
        """Return the numbers of the front's trials."""
        return set(self._front.names)

    @property
    def mean_seconds(self) -> float | None:
        """Mean seconds of the search's own finished trials, but for the target's; None if no trial has told them."""
        return float(np.mean(self._seconds)) if self._seconds else None

    def add(self, trial: FrozenTrial) -> list[int]:
        """Add a finished trial. Return the trials that it removes from the front, or its own number if it is dominated.

        A trial that is not complete returns its own number. Call this once per trial.
        """
        row = TrialRow.from_trial(trial)
        self._rows[trial.number] = row
        if row.state != PRIOR:
            self.counts[row.state] += 1
            if row.role != TARGET and (seconds := row.metrics.get("seconds")) is not None:
                self._seconds.append(seconds)
        for feature in _column_features(row):
            self._examples[feature] = min(self._examples.get(feature, trial.number), trial.number)
        if row.state != "complete":
            return [trial.number]
        costs = as_costs([[row.metrics.get(name, np.nan) for name in self._names]], self._directions)
        removed = self._front.add(trial.number, costs[0], row.violation)
        if removed != [trial.number] or (costs > self._worst).any():
            self._worst = np.fmax(self._worst, costs)
            self._volume = None
        return removed

    def result(self, running: Sequence[FrozenTrial] = ()) -> SearchResult:
        """Return the result of the finished trials and of the running ones."""
        running_rows = [TrialRow.from_trial(trial) for trial in running]
        all_rows = [*self._rows.values(), *running_rows]
        # The columns of a table and their types depend on all rows. One example of each feature is enough for them.
        front_rows = [self._rows[number] for number in {*self._front.names, *self._examples.values()}] + running_rows

        def table(rows: list[TrialRow]) -> pd.DataFrame:
            return table_of(sorted(rows, key=lambda row: row.trial), self._config)

        return SearchResult(
            self._run.path,
            self._config,
            *self._hypervolume(),
            make_trials=lambda: table(all_rows),
            make_front=lambda: front_table(table(front_rows), self._config),
            limits=self._limits(),
            uri=self._run.uri,
        )

    def _hypervolume(self) -> tuple[float, dict[str, float]]:
        if self._volume is None:
            seen: Points = self._worst if self._front.names else self._worst[:0]
            reference = reference_point(self._names, seen, self._directions)
            own = as_costs([reference.tolist()], self._directions)[0]
            volume = hypervolume(self._front.costs, reference) if self._front.violation <= 0 else 0.0
            self._volume = volume, dict(zip(self._names, own.tolist(), strict=True))
        return self._volume


def _column_features(row: TrialRow) -> Iterator[Hashable]:
    """Yield what a row contributes to its table: which columns exist, which may be empty, and the types of values."""
    yield row.role, bool(row.origin), frozenset(row.overrides), frozenset(row.metrics)
    for part, values in (("overrides", row.overrides), ("metrics", row.metrics)):
        for name, value in values.items():
            yield part, name, type(value)


class TimeBudget:
    """Limits repeated work to a share of the wall-clock time.

    Work that takes little time is always due. After work that took long, the next is due once enough time has passed.

    Args:
        share: the share of the time that the work may take.
        burst: seconds of work that may come at once.
        clock: returns seconds.
    """

    def __init__(self, share: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._burst, self._clock = share, burst, clock
        self._credit, self._updated = burst, clock()

    def is_due(self) -> bool:
        """Return whether the work may be done now."""
        now = self._clock()
        self._credit = min(self._burst, self._credit + self._share * (now - self._updated))
        self._updated = now
        return self._credit > 0

    def spend(self, seconds: float) -> None:
        """Record how long the work took."""
        self._credit -= seconds
