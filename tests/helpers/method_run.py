"""Every language method on one tiny problem, on whatever engine and number of ranks this is started with."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ofmu.engine.build import build_engine
from ofmu.engine.checkpoint import load_checkpoint, save_checkpoint
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.methods import BUILT_IN
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.methods.registry import method_class
from ofmu.methods.single_loop import SingleLoopConfig
from ofmu.models.config import AdapterConfig
from ofmu.models.lora import add_adapters
from trajectory import TinyTask, rows, tiny_llama

LANGUAGE = [name for name in BUILT_IN if "language" in method_class(name).tasks]

SMALL: dict[str, dict[str, Any]] = {
    "ofmu": {"outer_steps": 2, "inner_steps": 2, "inner_lr": 0.02, "outer_lr": 1e-3, "similarity_weight": 0.5},
    "influence": {"strength": 0.3, "damping": 0.1, "fisher_rows": 4},
}
"""Settings under which a method moves far within a few steps; those of one loop share the defaults below."""
DESCENT = {"steps": 4, "lr": 1e-3, "round_steps": 1}

LORA = {"kind": "lora", "rank": 4}
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ofmu-projection": ("ofmu", {"decorrelation": "projection"}, {}),
    # plain outer steps: Adam would make whole steps of the rounding noise in gradients of A, which are 0 while B is
    "ofmu-lora": ("ofmu", {"outer_update": "sgd", "outer_lr": 0.02, "similarity_weight": 0.05}, LORA),
    "npo-lora": ("npo", {}, LORA),
    "rmu-lora": ("rmu", {}, LORA),
    "npo-salient": ("npo", {"saliency_fraction": 0.5}, {}),
}
"""Runs beyond the methods' own: method, settings that differ, adapter."""
CASES = [*LANGUAGE, *VARIANTS]


def tiny_task() -> TinyTask:
    return TinyTask(rows(12, 1), rows(30, 2))


def small_settings(name: str, **settings: Any) -> Any:
    chosen = method_class(name).Config
    shared = DESCENT if issubclass(chosen, SingleLoopConfig) else {}
    return chosen(**({"batch_size": 6} | shared | SMALL.get(name, {}) | settings))


def run(
    name: str,
    engine_settings: dict[str, Any],
    *,
    method_settings: dict[str, Any] | None = None,
    stop_after: int | None = None,
    save_to: Path | None = None,
    resume_from: Path | None = None,
) -> dict[str, Any]:
    """Return the method's, or variant's, records, its cost and where the parameters started and ended."""
    torch.set_num_threads(1)
    tracker = CostTracker()
    name, varied, adapter = VARIANTS.get(name, (name, {}, {}))
    settings = small_settings(name, **(varied | (method_settings or {})))
    model = tiny_llama()
    add_adapters(model, AdapterConfig(**adapter), seed=5)
    engine = build_engine(model, EngineConfig(**engine_settings), tracker)
    start = sampled(engine.space.gather(engine.space.masters()))
    method = build_method(Context(engine, tiny_task(), seed=5), settings)
    if resume_from is not None:
        method.restore(*load_checkpoint(resume_from, engine.space))
    records = []
    for record in method.rounds():
        records.append(asdict(record))
        if len(records) == stop_after:
            break
    if save_to is not None:
        vectors, state = method.vectors(), method.state()
        save_checkpoint(save_to, engine.space, vectors, state, engine.rank, engine.world_size)
    result = {
        "records": records,
        "gradient_evaluations": tracker.gradient_evaluations,
        "forward_evaluations": tracker.forward_evaluations,
        "tokens": tracker.tokens,
        "start": start,
        "parameters": sampled(engine.space.gather(engine.space.masters())),
        "rank": engine.rank,
    }
    engine.close()
    return result


def sampled(parameters: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {key: value.detach().double().flatten()[::7].tolist() for key, value in parameters.items()}


if __name__ == "__main__":
    outcomes = {name: run(name, json.loads(sys.argv[2])) for name in sys.argv[3].split(",")}
    if outcomes[LANGUAGE[0]]["rank"] == 0:
        Path(sys.argv[1]).write_text(json.dumps(outcomes))
