"""Record what the commands give for fixed seeds: run it before and after a change that must not change a number.

    python tests/golden/record.py golden.json                  # every case
    python tests/golden/record.py golden.json methods stages   # some of them

Two files made on the same kind of machine with the same versions are equal, bit for bit. The entry ``machine`` holds
what the bits depend on. Numbers are stored as Python's ``repr`` writes them, so nothing is rounded.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

TEXT: dict[str, Any] = {
    "model": {"scratch": {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "vocab_size": 384}},
    "data": {"source": "generated", "max_length": 96, "generated": {"authors": 6, "forget_authors": 2}},
    "training": {"epochs": 6, "batch_size": 16, "learning_rate": 5e-3},
    "engine": {"device": "cpu", "threads": 1, "zero_stage": 0},
    "evaluation": {"max_new_tokens": 12, "batch_size": 64, "in_scope": True, "membership": False},
    "seed": 3,
}
IMAGES: dict[str, Any] = {
    "model": {"resnet": {"embedding_size": 6, "hidden_sizes": [6, 8], "depths": [1, 1]}},
    "data": {"source": "images", "vision": {"forget_class": "b", "image_size": 8}},
    "training": {"epochs": 6, "batch_size": 16, "learning_rate": 0.01},
    "engine": {"device": "cpu", "threads": 1, "zero_stage": 0},
    "evaluation": {"batch_size": 16},
    "seed": 3,
}
OFMU = {"outer_steps": 3, "inner_steps": 2, "batch_size": 4, "inner_lr": 0.05, "outer_lr": 1e-3}
LOOP = {"steps": 6, "lr": 1e-3, "batch_size": 4}
METHODS: dict[str, dict[str, Any]] = {
    "ofmu": OFMU,
    "influence": {"strength": 0.3, "damping": 0.1, "fisher_rows": 4, "batch_size": 4},
    "repselect": {"steps": 3, "rise": 1.0, "batch_size": 4},
}
SEARCH = {
    "num_trials": 4,
    "max_concurrent_trials": 1,
    "space": {
        "method.outer_steps": {"low": 1, "high": 4},
        "method.inner_lr": {"low": 0.01, "high": 0.1, "log": True},
        "method.similarity_weight": {"low": 0.01, "high": 1.0, "log": True},
    },
}
TIMES = {"seconds", "started", "finished", "evaluation_seconds", "bytes", "peak_memory", "trial_dir", "reason"}
"""Columns and keys that measure the machine, or name a place on it."""


def machine() -> dict[str, str]:
    """Return what the last bits of a number depend on, besides the code of this project."""
    import torch

    processor = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    versions = {name: version(name) for name in ("torch", "transformers", "deepspeed", "numpy", "optuna")}
    return {"processor": processor, "vectors": torch.backends.cpu.get_cpu_capability(), **versions}


def merged(base: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the mapping with whole sections replaced and sections' keys added."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = {**result[key], **value} if isinstance(result.get(key), dict) else value
    return result


def exact(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return every number that does not measure the machine, as its ``repr``."""
    return {
        name: repr(value)
        for name, value in sorted(metrics.items())
        if not any(word in name for word in ("seconds", "bytes", "memory")) and isinstance(value, int | float)
    }


def ofmu(folder: Path, *arguments: str, ranks: int = 0) -> None:
    """Run a command; on several ranks under torchrun."""
    command = [sys.executable, "-m", "ofmu"]
    if ranks:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command += ["-m", "ofmu"]
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{arguments} failed:\n{done.stdout}\n{done.stderr}")


def unlearn(folder: Path, name: str, config: Mapping[str, Any], ranks: int = 0) -> dict[str, str]:
    """Return the metrics of one run."""
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(dict(config)))
    ofmu(folder, "unlearn", f"{name}.yaml", "--output", name, ranks=ranks)
    return exact(json.loads((folder / name / "metrics.json").read_text())["metrics"])


def write_images(folder: Path) -> Path:
    """Write a folder of small images, three classes with their own colours."""
    generator = np.random.default_rng(7)
    for part, count in (("train", 24), ("test", 8)):
        for label, name in enumerate("abc"):
            place = folder / part / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 160, (8, 8, 3))
                pixels[..., label] += 80
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")
    return folder


def methods(folder: Path) -> dict[str, Any]:
    """Return the metrics of one trial of every method, in a single process at stage 0."""
    from ofmu.methods import BUILT_IN
    from ofmu.methods.registry import method_class

    images = merged(IMAGES, data={"path": str(write_images(folder / "images"))})
    found = {}
    for name in sorted(BUILT_IN):
        settings = {"name": name, **METHODS.get(name, LOOP)}
        for kind in sorted(method_class(name).tasks):
            base = TEXT if kind == "language" else images
            found[f"{name}/{kind}"] = unlearn(folder, f"{name}-{kind}", merged(base, method=settings))
    return found


def stages(folder: Path) -> dict[str, Any]:
    """Return the metrics of OFMU at every ZeRO stage on two ranks."""
    found = {}
    # Ranks would train the target together, in an order of additions of their own.
    (folder / "prepare.yaml").write_text(yaml.safe_dump(merged(TEXT, method=OFMU)))
    ofmu(folder, "prepare", "prepare.yaml")
    for stage in range(4):
        config = merged(TEXT, engine={"zero_stage": stage}, method=OFMU)
        found[f"stage {stage}"] = unlearn(folder, f"stage-{stage}", config, ranks=2)
    return found


def trials(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table without what measures the machine."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not any(word in k for word in TIMES)} for row in rows]


def search(folder: Path) -> Any:
    """Return the trials of a search that runs one trial at a time."""
    config = merged(TEXT, engine={"zero_stage": 2}, method={**OFMU}, search=SEARCH)
    (folder / "search.yaml").write_text(yaml.safe_dump(config))
    ofmu(folder, "search", "search.yaml", "--run-dir", "run")
    return {"trials": trials(folder / "run" / "trials.csv"), "front": trials(folder / "run" / "front.csv")}


def ask_tell(folder: Path) -> Any:
    """Return the trials of a search in a loop of the caller's own."""
    import ofmu
    from tune import AskTell

    config = merged(TEXT, engine={"backend": "torch"}, method={**OFMU}, search=SEARCH)
    with AskTell(config, run_dir=folder / "run") as loop:
        while (trial := loop.ask()) is not None:
            loop.tell(trial, ofmu.unlearn(trial.config, trial.directory).metrics)
    return {"trials": trials(folder / "run" / "trials.csv"), "front": trials(folder / "run" / "front.csv")}


def compare(folder: Path) -> Any:
    """Return the comparison of two methods, with every run behind it."""
    config = merged(TEXT, engine={"zero_stage": 2}, search={"max_concurrent_trials": 1})
    config["compare"] = {"space": {"method.lr": {"low": 1e-4, "high": 3e-3, "log": True}, "method.steps": 6}}
    (folder / "compare.yaml").write_text(yaml.safe_dump(config))
    wanted = ["--methods", "npo,graddiff", "--benchmark", "compare.yaml", "--trials", "3", "--seeds", "2"]
    ofmu(folder, "compare", *wanted, "--points", "2", "--run-dir", "run")
    return {"table": trials(folder / "run" / "compare.csv")}


CASES: dict[str, Callable[[Path], Any]] = {
    "methods": methods,
    "stages": stages,
    "search": search,
    "ask_tell": ask_tell,
    "compare": compare,
}


def record(names: list[str]) -> dict[str, Any]:
    """Return the cases' numbers; each case runs in a new folder with a cache of its own."""
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="g", dir="/tmp") as folder:
            os.environ["OFMU_CACHE"] = f"{folder}/cache"
            os.environ["OMP_NUM_THREADS"] = "1"
            found[name] = CASES[name](Path(folder))
        print(name, "recorded", flush=True)
    return found


if __name__ == "__main__":
    target = Path(sys.argv[1])
    found = {"machine": machine(), **record(sys.argv[2:] or list(CASES))}
    target.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
