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
import torch

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


def measure(stage: int) -> dict[str, float]:
    run_once(stage)
    gc.collect()
    files = psutil.Process().num_fds()
    references = [reference for _ in range(3) for reference in run_once(stage)]
    gc.collect()
    alive = sum(reference() is not None for reference in references)
    more_files = psutil.Process().num_fds() - files
    return {
        "references": len(references),
        "alive": alive,
        "more_files": more_files,
        "copies": copies_of_weights(stage),
    }


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    """Measure in a separate process, so that no other test changes the open files."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")]),
    }
    command = [sys.executable, str(Path(__file__).resolve())]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    measurements: dict[str, dict[str, float]] = json.loads(process.stdout.splitlines()[-1])
    return measurements


def copies_of_weights(stage: int) -> float:
    """Return the bytes of all tensors that a new engine holds, divided by those of the model."""
    gc.collect()
    before = live_storages()
    model = tiny_llama()
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    engine = build_engine(model, EngineConfig(backend="deepspeed", zero_stage=stage, device="cpu"), CostTracker())
    gc.collect()
    found = live_storages()
    engine.close()
    return sum(size for place, size in found.items() if place not in before) / size


def live_storages() -> dict[int, int]:
    """Return the bytes of the storages of all tensors, by address."""
    tensors = (item for item in gc.get_objects() if isinstance(item, torch.Tensor) and item.device.type == "cpu")
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["0", "1", "2"])
def test_an_engine_in_fp32_holds_the_weights_once(stage: str, measured: dict[str, dict[str, float]]) -> None:
    """The masters of stages 1 and 2 are a part of the weights. DeepSpeed copies them, and the copy is freed."""
    assert 1 <= measured[stage]["copies"] < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_a_closed_engine_is_freed_with_its_model_and_files(stage: str, measured: dict[str, dict[str, float]]) -> None:
    found = {name: measured[stage][name] for name in ("references", "alive", "more_files")}
    assert found == {"references": 12, "alive": 0, "more_files": 0}


if __name__ == "__main__":
    print(json.dumps({stage: measure(stage) for stage in range(4)}))
