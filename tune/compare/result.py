"""What a comparison found, as one typed tree: compare.json holds all of it, and every number leads to its run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from ofmu.config.base import Section
from ofmu.errors import RunError
from ofmu.io.files import write_text
from tune.space.objectives import Direction

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Quantity = Literal["levels", "hypervolume"]


class SeedRun(Section):
    """One point of a front, run again on one seed."""

    seed: int
    directory: str
    """Below the comparison's directory; its metrics.json holds all metrics, its config.yaml all settings."""
    metrics: dict[str, float | None] | None = None
    """Objectives and cost; None: the run failed."""
    reason: str | None = None


class PointRuns(Section):
    """One point of a method's front: the trial that found it, and its runs on all seeds."""

    trial: int
    settings: dict[str, Any]
    runs: tuple[SeedRun, ...]


class Cost(Section):
    """What a method's search and runs cost; None where nothing was reported."""

    search_gradient_evaluations: float
    """Of all finished trials together."""
    search_seconds: float
    """Of all finished trials together, each in its own process."""
    run_gradient_evaluations: float | None
    """Mean over the chosen points' runs."""
    run_seconds: float | None
    run_peak_memory_bytes: float | None
    """The largest of the runs' peaks; a process's peak, so a large run hides what follows it."""


class MethodSummary(Section):
    """One method's share of the comparison."""

    name: str
    title: str
    search: str
    """The search's directory below the comparison's."""
    trials: int
    failed: int
    pruned: int = 0
    """Trials that ``search.early_stopping`` ended early; no number here is of them."""
    points: tuple[PointRuns, ...]
    cost: Cost
    hypervolumes: tuple[float, ...]
    """One per seed, of that seed's runs."""
    hypervolume: float
    """Their mean."""
    hypervolume_interval: tuple[float, float] | None
    """Bootstrapped 95 % interval of the mean; None for one seed."""
    utility_at_forgetting: tuple[tuple[float | None, ...], ...]
    """Per forgetting level, one best value per seed; None where no run of that seed reached the level."""
    forgetting_at_utility: tuple[tuple[float | None, ...], ...]
    mean_rank: float
    """Over all pairs of seed and level; 1 is the best."""
    importances: dict[str, float]
    """Share of each searched setting in reaching the front, by PED-ANOVA over the method's own trials."""


class PairTest(Section):
    """Two methods held to each other."""

    quantity: Quantity
    """``levels``: all pairs of seed and level; ``hypervolume``: the seeds alone."""
    first: str
    second: str
    gain: float
    """Mean gain of the first over the second, above 0 where it is better; for levels in units of the span that an
    objective has from its worst to the best value seen."""
    p: float
    p_holm: float
    """Corrected for all pairs of methods in this quantity."""
    pairs: int
    """Levels that the same two runs of a seed meet count once."""
    least_p: float
    """The smallest p that so many pairs could have given."""
    exact: bool
    agrees: bool
    """Whether every single seed's mean has the sign of the gain."""


class Levels(Section):
    """Where methods are held to each other, in the objectives' own units and directions."""

    forgetting: tuple[float, ...]
    utility: tuple[float, ...]


class Summary(Section):
    """The whole comparison."""

    format: Literal["ofmu-compare/1"] = "ofmu-compare/1"
    command: tuple[str, ...]
    objectives: dict[str, Direction]
    """The first is forgetting, the second utility."""
    seeds: tuple[int, ...]
    budget: str
    significance: float
    target: dict[str, float]
    """The untouched target's objectives."""
    reference: dict[str, float] | None
    """The retrained reference's, as far as known."""
    corner: dict[str, float]
    """Where hypervolume is measured from, the same for all: each objective's worst possible, or worst seen, value."""
    levels: Levels
    methods: tuple[MethodSummary, ...]
    """By mean rank, the best first."""
    tests: tuple[PairTest, ...]
    best: dict[Quantity, str | None]
    """The method that is significantly better than every other one, or None."""

    def method(self, name: str) -> MethodSummary:
        """Return one method's share."""
        return next(method for method in self.methods if method.name == name)


@dataclass(frozen=True)
class ComparisonResult:
    """A finished comparison and where it lies."""

    run_dir: Path
    summary: Summary

    @classmethod
    def load(cls, run_dir: str | Path) -> ComparisonResult:
        """Read the comparison in ``run_dir``.

        Raises:
            RunError: there is none, or it is not finished.
        """
        path = Path(run_dir).absolute() / "compare.json"
        if not path.is_file():
            raise RunError(f"{run_dir} holds no finished comparison: continue one with ofmu compare --resume {run_dir}")
        try:
            summary = Summary.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError:
            raise RunError(
                f"{path} was not written by this version of ofmu compare: run the comparison again"
            ) from None
        return cls(path.parent, summary)

    def save(self) -> None:
        """Write compare.json.

        Raises:
            StorageError: the disk refuses the write.
        """
        write_text(self.run_dir / "compare.json", self.summary.model_dump_json(indent=2) + "\n")

    @property
    def table(self) -> pd.DataFrame:
        """One row per method, the best mean rank first: what compare.csv holds."""
        from tune.compare.tables import wide_table

        return wide_table(self.summary)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw all methods' fronts with their seeds' spread; with ``path``, save the picture too."""
        from tune.compare.plot import fronts_figure

        figure = fronts_figure(self.summary)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure
