"""Searches for Pareto fronts of forgetting against utility, on Ray Tune and Optuna.

Names are loaded on first use. So ``import tune`` is fast, and does not import Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune.ask_tell import AskedTrial, AskTell
    from tune.callbacks.base import Progress, SearchCallback
    from tune.compare.comparison import Comparison
    from tune.compare.config import CompareConfig
    from tune.compare.result import ComparisonResult
    from tune.config import SearchConfig
    from tune.erasure.forget import ForgetCallbacks, ForgetOptions, forget
    from tune.plan import search_cost
    from tune.reports import write_report
    from tune.results.result import Point, SearchResult
    from tune.run_list import list_runs
    from tune.search import ParetoSearch
    from tune.study.finished_trial import FinishedTrial

__all__ = [
    "AskTell",
    "AskedTrial",
    "CompareConfig",
    "Comparison",
    "ComparisonResult",
    "FinishedTrial",
    "ForgetCallbacks",
    "ForgetOptions",
    "ParetoSearch",
    "Point",
    "Progress",
    "SearchConfig",
    "SearchCallback",
    "SearchResult",
    "forget",
    "list_runs",
    "write_report",
    "search_cost",
]

_MODULES = {
    "AskTell": "tune.ask_tell",
    "AskedTrial": "tune.ask_tell",
    "CompareConfig": "tune.compare.config",
    "Comparison": "tune.compare.comparison",
    "ComparisonResult": "tune.compare.result",
    "FinishedTrial": "tune.study.finished_trial",
    "ForgetCallbacks": "tune.erasure.forget",
    "ForgetOptions": "tune.erasure.forget",
    "forget": "tune.erasure.forget",
    "ParetoSearch": "tune.search",
    "Point": "tune.results.result",
    "Progress": "tune.callbacks.base",
    "SearchConfig": "tune.config",
    "SearchCallback": "tune.callbacks.base",
    "SearchResult": "tune.results.result",
    "list_runs": "tune.run_list",
    "write_report": "tune.reports",
    "search_cost": "tune.plan",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tune' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
