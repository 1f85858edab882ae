"""The field's metrics, each a pure function of per-row scores, and the scoring of models on any number of ranks.

Names load on first use, so that the formulas can be used without torch or transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ofmu.evaluation.attacks import quantization, quantized, relearning
    from ofmu.evaluation.matching import require_match
    from ofmu.evaluation.official_log import read_official_log
    from ofmu.evaluation.registry import metric
    from ofmu.evaluation.run import evaluate, resolve_reference
    from ofmu.evaluation.scores import Scores
    from ofmu.evaluation.scoring import score_model
    from ofmu.evaluation.summary import Metrics, metrics_of

_HOMES = {
    "Metrics": "summary",
    "Scores": "scores",
    "evaluate": "run",
    "metric": "registry",
    "metrics_of": "summary",
    "quantization": "attacks",
    "quantized": "attacks",
    "read_official_log": "official_log",
    "relearning": "attacks",
    "require_match": "matching",
    "resolve_reference": "run",
    "score_model": "scoring",
}

__all__ = [
    "Metrics",
    "Scores",
    "evaluate",
    "metric",
    "metrics_of",
    "quantization",
    "quantized",
    "read_official_log",
    "relearning",
    "require_match",
    "resolve_reference",
    "score_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ofmu.evaluation.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ofmu.evaluation' has no attribute '{name}'")
