"""Evaluation: ``scoring`` makes per-row scores, ``metrics`` are functions of scores, ``robustness`` attacks a model.

Public names load on first use, so the formulas can be imported without torch and transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ofmu.evaluation.matching import require_match
    from ofmu.evaluation.metrics.registry import metric
    from ofmu.evaluation.metrics.summary import Metrics, metrics_of
    from ofmu.evaluation.official_log import read_official_log
    from ofmu.evaluation.robustness.attacks import quantization, quantized, relearning
    from ofmu.evaluation.scores import Scores
    from ofmu.evaluation.scoring.model import score_model

_MODULES = {
    "Metrics": "metrics.summary",
    "Scores": "scores",
    "metric": "metrics.registry",
    "metrics_of": "metrics.summary",
    "quantization": "robustness.attacks",
    "quantized": "robustness.attacks",
    "read_official_log": "official_log",
    "relearning": "robustness.attacks",
    "require_match": "matching",
    "score_model": "scoring.model",
}

__all__ = [
    "Metrics",
    "Scores",
    "metric",
    "metrics_of",
    "quantization",
    "quantized",
    "read_official_log",
    "relearning",
    "require_match",
    "score_model",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"ofmu.evaluation.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'ofmu.evaluation' has no attribute '{name}'")
