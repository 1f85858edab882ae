"""OFMU: bilevel machine unlearning under DeepSpeed (arXiv 2509.22483), and the metrics of an unlearned model.

Public names load on first use. So ``import ofmu`` takes milliseconds and does not import torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ofmu.erasure.request import ErasureRequest
    from ofmu.erasure.verify import VerifiedEvidence, verify_evidence
    from ofmu.errors import OfmuError
    from ofmu.evaluator import evaluate
    from ofmu.plan.plan import Plan, make_plan
    from ofmu.preparer import prepare
    from ofmu.reports.run import write_run_page
    from ofmu.run_config import UnlearnConfig
    from ofmu.tasks.preparation import Prepared
    from ofmu.trainer import UnlearnResult, unlearn

__version__ = "0.2.0"

# Waiting OpenMP threads spin by default. With another busy process on the same cores, a training step of a small model
# took 25 to 30 times as long as with one thread. OpenMP reads this variable when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_MODULES = {
    "ErasureRequest": "ofmu.erasure.request",
    "VerifiedEvidence": "ofmu.erasure.verify",
    "verify_evidence": "ofmu.erasure.verify",
    "UnlearnConfig": "ofmu.run_config",
    "OfmuError": "ofmu.errors",
    "Plan": "ofmu.plan.plan",
    "Prepared": "ofmu.tasks.preparation",
    "UnlearnResult": "ofmu.trainer",
    "evaluate": "ofmu.evaluator",
    "make_plan": "ofmu.plan.plan",
    "prepare": "ofmu.preparer",
    "unlearn": "ofmu.trainer",
    "write_run_page": "ofmu.reports.run",
}

__all__ = [
    "ErasureRequest",
    "OfmuError",
    "Plan",
    "Prepared",
    "UnlearnConfig",
    "UnlearnResult",
    "VerifiedEvidence",
    "__version__",
    "evaluate",
    "make_plan",
    "prepare",
    "unlearn",
    "verify_evidence",
    "write_run_page",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'ofmu' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
