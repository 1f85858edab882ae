"""A closed engine leaves no memory and no open files, since many trials run one after the other in one process."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import psutil
import pytest

from method_specs import ofmu_trajectory
from ofmu.engine.build import build_engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.methods.base import Context
from ofmu.methods.ofmu.bilevel import OFMU
from ofmu.testing import tiny_language_task, tiny_llama

ROOT = Path(__file__).resolve().parents[3]


def run_once(stage: int) -> list[weakref.ref[object]]:
    model = tiny_llama()
    engine = build_engine(model, EngineConfig(backend="deepspeed", zero_stage=stage, device="cpu"), CostTracker())
    config = ofmu_trajectory(outer_steps=1, inner_steps=1).method
    list(OFMU(Context(engine, tiny_language_task(), seed=5), config).rounds())
    references = [weakref.ref(item) for item in (model, engine, engine._engine, engine.space)]
    engine.close()
    return references


def measure(stage: int) -> dict[str, int]:
    run_once(stage)
    gc.collect()
    files = psutil.Process().num_fds()
    references = [reference for _ in range(3) for reference in run_once(stage)]
    gc.collect()
    alive = sum(reference() is not None for reference in references)
    return {"references": len(references), "alive": alive, "more_files": psutil.Process().num_fds() - files}


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, int]]:
    """Measure in a separate process, so that no other test changes the open files."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")]),
    }
    command = [sys.executable, str(Path(__file__).resolve())]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    measurements: dict[str, dict[str, int]] = json.loads(process.stdout.splitlines()[-1])
    return measurements


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_a_closed_engine_is_freed_with_its_model_and_files(stage: str, measured: dict[str, dict[str, int]]) -> None:
    assert measured[stage] == {"references": 12, "alive": 0, "more_files": 0}


if __name__ == "__main__":
    print(json.dumps({stage: measure(stage) for stage in range(4)}))
