"""The records of ``compare.json``. They hold all numbers of a comparison, and the directory of every run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tune.rundir.seed_runs import PointRuns, Record, SeedRun
from tune.space.objectives import Direction

MIN_SEEDS = 3
"""On fewer seeds no method is marked as best, whatever p is."""

Quantity = Literal["levels", "hypervolume"]
"""What two methods are tested on: the values at all levels, or the hypervolumes."""


class Cost(Record):
    """What a method's search and runs cost. None where no run reported the value."""

    search_gradient_evaluations: float
    """Sum over all finished trials."""
    search_seconds: float
    """Sum over all finished trials, each in its own process."""
    run_gradient_evaluations: float | None
    """Mean over the points' runs."""
    run_seconds: float | None
    """Mean over the points' runs."""
    run_peak_memory_bytes: float | None
    """Maximum over the runs. The runs share a process, whose peak never falls, so a large run hides later peaks."""


class RetainSpread(Record):
    """How one quantity of a method varies with the retain rows that were used, and with the seed."""

    quantity: str
    """An objective, or ``hypervolume``."""
    between_draws: float | None
    """Standard deviation over draws of the retain rows at one seed; an objective's is pooled over the points."""
    between_seeds: float | None
    """Standard deviation over seeds with all retain rows; an objective's is pooled over the points."""
    shift: float | None
    """Mean over the draws, less the value of the same seed with all retain rows."""

    @property
    def ratio(self) -> float | None:
        """Return the spread over the draws as a multiple of the spread over the seeds; None if that is 0 or unknown."""
        if self.between_draws is None or not self.between_seeds:
            return None
        return self.between_draws / self.between_seeds


class MethodSummary(Record):
    """One method's results."""

    @property
    def runs(self) -> list[SeedRun]:
        """The runs of all points on other seeds."""
        return [run for point in self.points for run in point.runs]

    name: str
    title: str
    search: str
    """The search's directory, relative to the comparison's."""
    trials: int
    failed: int
    pruned: int = 0
    """Trials that ``search.early_stopping`` ended. No other number here includes them."""
    points: tuple[PointRuns, ...]
    infeasible_runs: int = 0
    """Runs of its points that violate a constraint. They count as if they had no result."""
    cost: Cost
    hypervolumes: tuple[float, ...]
    """One per seed, of that seed's runs."""
    hypervolume: float
    """Mean over the seeds."""
    hypervolume_interval: tuple[float, float] | None
    """Bootstrapped 95 % interval of the mean; None for one seed."""
    utility_at_forgetting: tuple[tuple[float | None, ...], ...]
    """Per forgetting level, the best utility of each seed; None if no run of that seed reached the level."""
    forgetting_at_utility: tuple[tuple[float | None, ...], ...]
    """Per utility level, the best forgetting of each seed; None if no run of that seed reached the level."""
    mean_rank: float
    """Mean over all pairs of seed and level. Rank 1 is the best."""
    retain_points: tuple[PointRuns, ...] = ()
    """The runs of the points on draws of the retain rows, all at the first seed. Empty without ``retain_draws``."""
    retain_hypervolumes: tuple[float, ...] = ()
    """One per draw, of that draw's runs."""
    retain_spreads: tuple[RetainSpread, ...] = ()
    """Per objective, and for the hypervolume."""
    importances: dict[str, float]
    """Each searched setting's share in reaching the front, by PED-ANOVA over the method's own trials."""


class PairTest(Record):
    """The test of two methods against each other."""

    quantity: Quantity
    """``levels``: over all pairs of seed and level; ``hypervolume``: over the seeds."""
    first: str
    second: str
    gain: float
    """Mean gain of the first method over the second. Above 0, the first is better. For levels, the unit is the range
    of the objective between the best value of any run and the reference point."""
    p: float
    p_holm: float
    """Corrected for all pairs of methods in this quantity."""
    pairs: int
    """Number of pairs. Levels that the same two runs of a seed meet count once."""
    min_attainable_p: float = Field(validation_alias="least_p", serialization_alias="least_p")
    """The smallest p that the test could give for this number of pairs."""
    exact: bool
    """True if all sign patterns were counted; False if patterns were sampled."""
    consistent: bool = Field(validation_alias="agrees", serialization_alias="agrees")
    """Whether the mean of every single seed has the sign of the gain."""

    def is_between(self, name: str) -> bool:
        """Return whether a method is one of the two."""
        return name in (self.first, self.second)

    def is_better(self, name: str) -> bool:
        """Return whether one of the two methods has the better mean, whatever p is."""
        return self.gain > 0 if name == self.first else self.gain < 0

    def is_won(self, name: str, significance: float) -> bool:
        """Return whether one of the two methods is significantly better, and better on every single seed."""
        return self.is_better(name) and self.consistent and self.p_holm < significance


class Levels(Record):
    """The levels at which methods are compared, in the objectives' own units and directions."""

    forgetting: tuple[float, ...]
    utility: tuple[float, ...]


class Summary(Record):
    """The whole comparison."""

    format: Literal["ofmu-compare/1"] = "ofmu-compare/1"
    command: tuple[str, ...]
    """The command line that started the comparison."""
    objectives: dict[str, Direction]
    """The first objective is forgetting, the second utility."""
    seeds: tuple[int, ...]
    retain_draws: int = 0
    """Draws of the retain rows on which the points ran again."""
    retain_share: float = 1.0
    """Share of the retain rows in a draw."""
    budget: str
    significance: float
    target: dict[str, float]
    """The untouched target's objectives."""
    reference: dict[str, float] | None
    """The retrained reference's objectives that were stored; None without a reference."""
    reference_point: dict[str, float] = Field(validation_alias="corner", serialization_alias="corner")
    """The hypervolume's reference point, the same for all methods: each objective's worst possible value, or else the
    worst value of a run."""
    limits: tuple[str, ...] = ()
    """The bounds of the constraints, such as ``model_utility ≥ 0.714``."""
    levels: Levels
    methods: tuple[MethodSummary, ...]
    """By mean rank, the best first."""
    tests: tuple[PairTest, ...]
    best: dict[Quantity, str | None]
    """The method that is significantly better than every other one, or None."""

    @property
    def gradient_evaluations(self) -> float:
        """Gradient evaluations of all searches and of all runs on other seeds."""
        return sum(method.cost.search_gradient_evaluations for method in self.methods) + self._of_runs(
            "gradient_evaluations"
        )

    @property
    def seconds(self) -> float:
        """Seconds of all trials and of all runs on other seeds, one after the other."""
        return sum(method.cost.search_seconds for method in self.methods) + self._of_runs("seconds")

    def _of_runs(self, metric: str) -> float:
        runs = (run for method in self.methods for run in method.runs)
        return sum((run.metrics or {}).get(metric) or 0.0 for run in runs)

    def method(self, name: str) -> MethodSummary:
        """Return one method's results."""
        return next(method for method in self.methods if method.name == name)

    def to_json(self) -> str:
        """Return the text of ``compare.json``."""
        return self.model_dump_json(indent=2, by_alias=True) + "\n"
