"""Every vision method on one tiny problem, on whatever engine and number of ranks this is started with."""

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
from tiny_images import TinyImageTask, tiny_classifier

VISION = [name for name in BUILT_IN if "vision" in method_class(name).tasks]

SMALL: dict[str, dict[str, Any]] = {
    # with a larger β this random problem amplifies rounding a thousandfold from step to step
    "ofmu": {
        "outer_steps": 2,
        "inner_steps": 1,
        "inner_lr": 0.02,
        "outer_lr": 1e-3,
        "forget_sharpness": 1.0,
        "similarity_weight": 0.05,
        "similarity_scale": "absolute",
    },
    "influence": {"strength": 0.3, "damping": 0.1, "fisher_rows": 4},
}
DESCENT = {"steps": 3, "lr": 1e-3, "round_steps": 1}
MASKED = {"ofmu-salient": "ofmu", "graddiff-salient": "graddiff"}
"""The mask around methods other than its own."""
CASES = [*VISION, *MASKED]


def small_settings(name: str, **settings: Any) -> Any:
    masked = {"saliency_fraction": 0.5} if name in MASKED else {}
    name = MASKED.get(name, name)
    chosen = method_class(name).Config
    shared = DESCENT if issubclass(chosen, SingleLoopConfig) else {}
    return chosen(**({"batch_size": 6} | shared | SMALL.get(name, {}) | masked | settings))


def run(
    name: str,
    engine_settings: dict[str, Any],
    *,
    method_settings: dict[str, Any] | None = None,
    stop_after: int | None = None,
    save_to: Path | None = None,
    resume_from: Path | None = None,
) -> dict[str, Any]:
    """Return the method's records, its cost, and where parameters and statistics started and ended."""
    torch.set_num_threads(1)
    tracker = CostTracker()
    engine = build_engine(tiny_classifier(), EngineConfig(device="cpu", **engine_settings), tracker)
    start = flat(engine.space.gather(engine.space.masters()))
    settings = small_settings(name, **(method_settings or {}))
    method = build_method(Context(engine, TinyImageTask(), seed=5), settings)
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
        "parameters": flat(engine.space.gather(engine.space.masters())),
        "statistics": flat(dict(engine.model.named_buffers())),
        "rank": engine.rank,
    }
    engine.close()
    return result


def flat(tensors: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {key: value.detach().double().flatten().tolist() for key, value in tensors.items()}


if __name__ == "__main__":
    outcomes = {name: run(name, json.loads(sys.argv[2])) for name in sys.argv[3].split(",")}
    if outcomes[CASES[0]]["rank"] == 0:
        Path(sys.argv[1]).write_text(json.dumps(outcomes))
