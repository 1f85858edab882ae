"""Searches for Pareto fronts of forgetting against utility, on Ray Tune and Optuna.

The names are loaded on first use, so that ``import tune`` starts in no time and does not import Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune.ask_tell import AskedTrial, AskTell
    from tune.callbacks.base import Progress, SearchCallback
    from tune.compare.comparison import Comparison
    from tune.compare.result import ComparisonResult
    from tune.config import SearchConfig
    from tune.results.result import Point, SearchResult
    from tune.search import ParetoSearch
    from tune.study.finished_trial import EndedTrial

__all__ = [
    "AskTell",
    "AskedTrial",
    "Comparison",
    "ComparisonResult",
    "EndedTrial",
    "ParetoSearch",
    "Point",
    "Progress",
    "SearchConfig",
    "SearchCallback",
    "SearchResult",
]

_HOMES = {
    "AskTell": "tune.ask_tell",
    "AskedTrial": "tune.ask_tell",
    "Comparison": "tune.compare.comparison",
    "ComparisonResult": "tune.compare.result",
    "EndedTrial": "tune.study.finished_trial",
    "ParetoSearch": "tune.search",
    "Point": "tune.results.result",
    "Progress": "tune.callbacks.base",
    "SearchConfig": "tune.config",
    "SearchCallback": "tune.callbacks.base",
    "SearchResult": "tune.results.result",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tune' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
