"""Which kind of run a directory holds, and how far the run is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from cluster.storage.uri import is_uri
from ofmu.errors import DataError, RunError
from ofmu.io.files import looked_for, read_json
from ofmu.io.lock import LOCK
from ofmu.run_files import CONFIG, ENVIRONMENT, METRICS, made_by_ofmu
from tune.rundir.search_files import TRIALS

Kind = Literal["search", "comparison", "run", "evaluation"]
SEARCHES = "searches"
"""The folder of a comparison's searches."""


def kind_of(directory: str | Path) -> Kind:
    """Return the kind of run in a directory. A URI is a search.

    Raises:
        RunError: there is no such directory, or ofmu did not write it.
    """
    if is_uri(directory):
        return "search"
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise RunError(f"{directory} is a file: name the directory of a run")
    if not path.is_dir():
        raise RunError(f"There is no run directory {looked_for(directory)}: check the path")
    found = find_kind(path)
    if found is None:
        raise RunError(
            f"{directory} is not the directory of a search, a comparison, a run or an evaluation: it has no "
            f"{ENVIRONMENT} of ofmu with a {CONFIG}, and no {METRICS} of ofmu evaluate"
        )
    return found


def find_kind(path: Path) -> Kind | None:
    """Return the kind of run in a directory; None if ofmu did not write it."""
    if not made_by_ofmu(path):
        return "evaluation" if _is_evaluation(path) else None
    if (path / SEARCHES).is_dir():
        return "comparison"
    if (path / TRIALS).is_dir():
        return "search"
    return "run"


def is_locked(path: Path) -> bool:
    """Return whether a process on this machine works on a search, a comparison or a run of ``ofmu unlearn``."""
    lock = path / LOCK
    if lock.is_symlink() or not lock.is_file():
        # Locking a file empties it, and a link may name a file elsewhere.
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        # Another user's lock in a directory that only they may write.
        return False


def _is_evaluation(path: Path) -> bool:
    # Any program may write a file of this name.
    with suppress(DataError):
        report = read_json(path / METRICS)
        return isinstance(report, dict) and report.keys() >= {"model", "config", "environment", "baseline_metrics"}
    return False
