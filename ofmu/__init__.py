"""OFMU: bilevel machine unlearning under DeepSpeed (arXiv 2509.22483), and the scores that judge it.

Public names load on first use, so that ``import ofmu`` costs milliseconds and starts nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ofmu.errors import OfmuError
    from ofmu.evaluator import evaluate
    from ofmu.preparer import prepare
    from ofmu.run_config import UnlearnConfig
    from ofmu.tasks.preparation import Prepared
    from ofmu.trainer import UnlearnResult, unlearn

__version__ = "0.2.0"

# OpenMP's threads spin while they wait; beside another busy process on the same cores that made a training step of
# a small model 25 to 30 times slower than one thread alone. Read when torch is loaded, hence before any import of it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOMES = {
    "UnlearnConfig": "ofmu.run_config",
    "OfmuError": "ofmu.errors",
    "Prepared": "ofmu.preparer",
    "UnlearnResult": "ofmu.trainer",
    "evaluate": "ofmu.evaluator",
    "prepare": "ofmu.preparer",
    "unlearn": "ofmu.trainer",
}

__all__ = [
    "OfmuError",
    "Prepared",
    "UnlearnConfig",
    "UnlearnResult",
    "__version__",
    "evaluate",
    "prepare",
    "unlearn",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ofmu' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
