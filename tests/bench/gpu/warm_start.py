"""A whole run, from config to saved model, in a fresh process and again in the same process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gpu.settings import Figures, Row, Settings, case_row, engine_for, need_deepspeed

RUN: dict[str, Any] = {
    "model": {"scratch": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "vocab_size": 384}},
    "data": {"source": "generated", "max_length": 96, "generated": {"authors": 6, "forget_authors": 2}},
    "training": {"epochs": 1},
    "method": {"outer_steps": 1, "inner_steps": 1, "inner_lr": 0.05, "outer_lr": 1e-3, "batch_size": 4},
    "evaluation": {"max_new_tokens": 12},
}


def measure(settings: Settings) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        for stage in (None, 2):
            config = RUN | {"engine": engine_for(settings, stage), "seed": settings.seed}
            label = "PyTorch" if stage is None else f"ZeRO {stage}"
            place = str(Path(folder) / label)
            yield case_row(label, partial(_cold_and_warm, config, stage, place), config=config)


def _cold_and_warm(config: dict[str, Any], stage: int | None, folder: str) -> Figures:
    if stage is not None:
        need_deepspeed()
    _in_new_process("prepare_only", config, folder)
    begin = time.time()
    found = json.loads(_in_new_process("run_twice", config, folder))
    return {
        "cold s": found["ends"][0] - begin,
        "first run s": found["seconds"][0],
        "warm s": found["seconds"][1],
        "warm/cold": found["seconds"][1] / (found["ends"][0] - begin),
        "first peak MiB": found["peaks"][0] / 2**20,
        "second peak MiB": found["peaks"][1] / 2**20,
    }


def _in_new_process(function: str, config: dict[str, Any], folder: str) -> str:
    """Run a function of this file in a new process. Return the last line that it prints."""
    command = [sys.executable, "-c", f"from gpu.warm_start import {function}; {function}()", json.dumps(config), folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the process ended")
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def _given() -> tuple[Any, Path]:
    import os

    from ofmu.run_config import UnlearnConfig

    folder = Path(sys.argv[2])
    os.environ["OFMU_CACHE"] = str(folder / "cache")
    return UnlearnConfig.model_validate(json.loads(sys.argv[1])), folder


def prepare_only() -> None:
    """Train the target, so that the runs find it in the cache."""
    from ofmu.preparer import prepare

    config, _ = _given()
    prepare(config)


def run_twice() -> None:
    """Print the seconds of two runs, when they ended, and the peak of their memory."""
    from ofmu.preparer import prepare
    from ofmu.trainer import unlearn

    config, folder = _given()
    ends, seconds, peaks = [], [], []
    for number in range(2):
        begin = time.perf_counter()
        result = unlearn(config, folder / f"run-{number}", prepared=prepare(config))
        seconds.append(time.perf_counter() - begin)
        ends.append(time.time())
        report = json.loads((result.output_dir / "metrics.json").read_text())
        memory = report["cost"]["peak_memory_bytes"][0]
        peaks.append(memory.get("device", memory["host"]))
    print(json.dumps({"ends": ends, "seconds": seconds, "peaks": peaks}))
