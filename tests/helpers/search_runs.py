"""Directories of finished searches with made-up scores. Nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tune import AskTell
from tune.results.result import SearchResult
from tune.rundir.search_dir import RunDirectory

REFERENCE = {"ks_statistic": 0.0, "model_utility": 0.8, "forget_quality": 1.0, "forget_quality_rows": 40.0}


def write_search(
    directory: Path,
    trials: int = 12,
    *,
    objectives: dict[str, str] | None = None,
    space: dict[str, Any] | None = None,
    failure: str = "the loss became NaN",
    reference: bool = True,
) -> SearchResult:
    """Write a search whose last trial failed and whose last but one was pruned. The knee's model is there."""
    search: dict[str, Any] = {"num_trials": trials}
    if objectives is not None:
        search["objectives"] = objectives
    if space is not None:
        search["space"] = space
    with AskTell({"search": search, "seed": 3}, run_dir=directory) as loop:
        while (trial := loop.ask()) is not None:
            if trial.number == trials - 1:
                loop.fail(trial, failure)
            elif trial.number == trials - 2:
                loop.prune(trial, round=2, total=9)
            else:
                loop.tell(trial, _metrics(trial.number, trials))
        run = RunDirectory(directory)
        if reference:
            run.write_reference(REFERENCE)
        (run.trial(3) / "model").mkdir(parents=True)
        return loop.result()


def write_warm_search(directory: Path) -> SearchResult:
    """Write a search of four trials that began with the trials of an earlier search, which lies beside it."""
    earlier = directory.with_name(f"{directory.name}-earlier")
    write_search(earlier)
    with AskTell({"search": {"num_trials": 4}, "seed": 3}, run_dir=directory, warm_start=earlier) as loop:
        while (trial := loop.ask()) is not None:
            loop.tell(trial, _metrics(trial.number, 40) | {"gradient_evaluations": 7.0, "seconds": 1.5})
        return loop.result()


def _metrics(number: int, trials: int) -> dict[str, float]:
    """Return metrics in which trial 0, the target, forgets least, and the others lie around a front."""
    share = 1.0 if number == 0 else number / trials
    return {
        "ks_statistic": round(0.95 * share, 4),
        "model_utility": round(0.8 * share**0.3 - (0.2 if number % 4 == 2 else 0.0), 4),
        "forget_quality": 0.5 if share < 0.3 else 0.001,
        "forget_quality_rows": 40.0,
        "extraction_strength": share,
        "gradient_evaluations": 10.0 * number,
        "seconds": 2.5,
        "peak_memory_bytes": 5e8,
    }
