"""List the run directories below a folder: what each is, how far it is, what it found, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ofmu.errors import OfmuError, RunError
from ofmu.io.files import looked_for
from ofmu.io.text import counted
from ofmu.methods.config import with_variant
from ofmu.reports.numbers import number
from ofmu.run_files import RunFiles, started_at
from tune.compare.directory import CompareDirectory
from tune.compare.summary import Summary
from tune.config import SearchOptions
from tune.rundir.kind import Kind, find_kind, is_locked
from tune.rundir.search_dir import RunDirectory
from tune.rundir.search_files import SearchSummary

_DEPTH = 4
"""Folders below the given one are searched to this depth. Run directories are not searched further."""


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """One run directory."""

    directory: Path
    kind: Kind
    state: str
    """running, complete, interrupted, stopped early, not complete, or unreadable."""
    method: str
    result: str
    """The front and its hypervolume, or the first metrics."""
    gradient_evaluations: float | None
    seconds: float | None
    started: str
    """Date and time in ISO format; empty if it was not stored."""


def list_runs(folder: str | Path = "runs") -> list[RunEntry]:
    """Return the run directories in a folder, by path.

    Args:
        folder: a folder with run directories, or a run directory.

    Raises:
        RunError: there is no such folder.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise RunError(f"{folder} is a file: name the folder that holds your run directories")
    if not path.is_dir():
        raise RunError(f"There is no folder {looked_for(folder)}: name the folder that holds your run directories")
    return list(_walk(path, _DEPTH))


def _walk(folder: Path, depth: int) -> Iterator[RunEntry]:
    kind = find_kind(folder)
    if kind is not None:
        yield _entry(folder, kind)
        return
    if depth == 0:
        return
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return
    for path in inner:
        yield from _walk(path, depth - 1)


def _entry(directory: Path, kind: Kind) -> RunEntry:
    """Return the entry of one directory. A damaged file makes the entry unreadable, and no error."""
    describe = {"search": _search, "comparison": _comparison, "run": _run, "evaluation": _evaluation}[kind]
    values: dict[str, Any] = {"state": "unreadable"}
    with suppress(OfmuError, ValidationError, OSError, ValueError, KeyError, TypeError, AttributeError):
        values = describe(directory)
    blank = {"method": "", "result": "", "gradient_evaluations": None, "seconds": None, "started": ""}
    return RunEntry(directory=directory, kind=kind, **(blank | values))


def _search(directory: Path) -> dict[str, Any]:
    run = RunDirectory(directory)
    config, summary = run.read_config_of_results(), run.read_summary()
    done = 0 if summary is None else summary.complete + summary.failed + summary.pruned
    is_over = summary is not None and _is_over(summary, config.search, run.trials_table)
    state = "running" if is_locked(directory) else "complete" if is_over else "interrupted"
    values = _common(directory) | {"state": state, "method": config.method.label}
    if summary is None:
        return values | {"result": "no finished trial"}
    failed = f", {summary.failed} failed" if summary.failed else ""
    front = f"front {len(summary.front)}, hypervolume {summary.hypervolume:.4f}"
    return values | {
        "result": f"{done} of {counted(config.search.num_trials, 'trial')}{failed}, {front}",
        "seconds": summary.seconds,
        "gradient_evaluations": _sum_of_column(run.trials_table, "gradient_evaluations"),
    }


def _is_over(summary: SearchSummary, options: SearchOptions, table: Path) -> bool:
    """Return whether a search used up what its config allows, which a resume may have raised since the last report."""
    done = summary.complete + summary.failed + summary.pruned
    if done >= options.num_trials:
        return True
    if summary.is_over is not None:
        return summary.is_over and summary.asked >= options.num_trials
    limit = options.max_gradient_evaluations
    if limit is not None and (_sum_of_column(table, "gradient_evaluations") or 0) >= limit:
        return True
    return options.max_hours is not None and summary.seconds >= 3600 * options.max_hours


def _comparison(directory: Path) -> dict[str, Any]:
    home = CompareDirectory(directory)
    if home.summary_file.is_file() and not is_locked(directory):
        summary = Summary.model_validate_json(home.summary_file.read_text(encoding="utf-8"))
        best = summary.best["levels"]
        return _common(directory) | {
            "state": "complete",
            "method": ", ".join(method.name for method in summary.methods),
            "result": f"{best} is best"
            if best
            else f"none is significantly best on {counted(len(summary.seeds), 'seed')}",
            "gradient_evaluations": summary.gradient_evaluations,
            "seconds": summary.seconds,
        }
    methods = home.read_mapping()["compare"]["methods"]
    state = "running" if is_locked(directory) else "interrupted"
    return _common(directory) | {"state": state, "method": ", ".join(methods)}


def _run(directory: Path) -> dict[str, Any]:
    files = RunFiles(directory)
    report, record = files.read_report(), files.read_pruning_record()
    config = (report or {}).get("config") or files.read_config() or {}
    method = config.get("method") or {}
    metrics = dict((report or {}).get("metrics") or (record.metrics if record else {}))
    state = (
        "complete" if report else "stopped early" if record else "running" if is_locked(directory) else "not complete"
    )
    shown = [name for name in ("ks_statistic", "model_utility", "average_gap") if metrics.get(name) is not None]
    return _common(directory) | {
        "state": state,
        "method": with_variant(str(method.get("name", "")), method.get("variant")),
        "result": ", ".join(f"{name} {number(metrics[name])}" for name in shown),
        "gradient_evaluations": metrics.get("gradient_evaluations"),
        "seconds": metrics.get("seconds", (report or {}).get("seconds")),
    }


def _evaluation(directory: Path) -> dict[str, Any]:
    # The config names the method of the run whose data is used, which need not have made the model.
    return _run(directory) | {"method": ""}


def _common(directory: Path) -> dict[str, Any]:
    return {"started": started_at(directory)}


def _sum_of_column(table: Path, name: str) -> float | None:
    """Return the sum of a column over a search's own trials; None if no trial has reported the value."""
    # pandas is slow to import.
    import pandas as pd

    # This imports pandas too.
    from tune.results.tables import own_trials

    columns = pd.read_csv(table, nrows=0).columns
    return float(own_trials(pd.read_csv(table, usecols=["state", name]))[name].sum()) if name in columns else None
