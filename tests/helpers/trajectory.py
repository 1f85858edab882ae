"""One small OFMU run, from a fixed seed, on whatever engine and number of ranks it is started with."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ofmu.data.rows import Example
from ofmu.engine.build import build_engine
from ofmu.engine.checkpoint import load_checkpoint, save_checkpoint
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.losses import AnswerLoss
from ofmu.methods.base import Context
from ofmu.methods.ofmu.bilevel import OFMU
from ofmu.methods.ofmu.config import OfmuConfig

VOCABULARY = 61


def tiny_llama(attention: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model


def rows(count: int, seed: int) -> list[Example]:
    """Rows of unequal lengths, so that ranks hold unequal numbers of tokens.

    All follow one rule with noise, so forget and retain gradients are clearly similar: S stays away from 0, where
    a relative comparison would be of rounding errors.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        length = 8 + 3 * (index % 5)
        ids = [3 + (index * 7 + seed) % (VOCABULARY - 3)]
        for noise in torch.randint(0, 3, (length,), generator=generator).tolist():
            ids.append(3 + (2 * ids[-1] + noise) % 12)
        found.append(Example(tuple(ids), 2 + index % 3))
    return found


@dataclass
class TinyTask:
    """What methods read of a task; all rows follow one rule, so that forget and retain gradients are similar."""

    forget_rows: Sequence[Example]
    retain_rows: Sequence[Example]
    kind: str = "language"
    pad_id: int = 0

    def __post_init__(self) -> None:
        self.loss = AnswerLoss(self.pad_id)
        self.content_hash = "tiny"

    def refusals(self) -> list[Example]:
        return [replace(row, input_ids=(*row.input_ids[: row.answer_start], 5, 6, 7)) for row in self.forget_rows]


# A step must not amplify rounding: with similarity_weight 0.5, where ∇S rules the ascent, two ways of adding up the
# same minibatch drift apart by a thousandth of S within ten steps; with 0.2 it is a hundredth of that. At this level
# and sharpness the rows' gates stand half open.
METHOD: dict[str, Any] = {
    "outer_steps": 10,
    "inner_steps": 3,
    "inner_update": "normalized",
    "inner_lr": 0.02,
    "outer_update": "adamw",
    "outer_lr": 1e-3,
    "batch_size": 6,
    "forget_margin": 5.0,
    "forget_sharpness": 1.0,
    "similarity_weight": 0.2,
    "similarity_scale": "absolute",
    "similarity_threshold": -1.0,
    "penalty_weight": 0.01,
    "penalty_growth": 1.1,
    "penalty_max": 0.02,
}


def run(
    engine_settings: dict[str, Any],
    method_settings: dict[str, Any] | None = None,
    *,
    stop_after: int | None = None,
    save_to: Path | None = None,
    resume_from: Path | None = None,
) -> dict[str, Any]:
    """Return the records of every outer step, the ledger and the final parameters' norm."""
    torch.set_num_threads(1)
    method = OfmuConfig(**(METHOD | (method_settings or {})))
    tracker = CostTracker()
    exact = "exact" in (method.derivative, method.outer_derivative)
    engine = build_engine(tiny_llama("eager" if exact else "sdpa"), EngineConfig(**engine_settings), tracker)
    bilevel = OFMU(Context(engine, TinyTask(rows(12, 1), rows(30, 2)), seed=5), method)
    if resume_from is not None:
        bilevel.restore(*load_checkpoint(resume_from, engine.space))
    records = []
    for record in bilevel.rounds():
        records.append(asdict(record))
        if record.outer_step == stop_after:
            break
    if save_to is not None:
        vectors, state = bilevel.vectors(), bilevel.state()
        save_checkpoint(save_to, engine.space, vectors, state, engine.rank, engine.world_size)
    result = {
        "records": records,
        "gradient_evaluations": tracker.gradient_evaluations,
        "tokens": tracker.tokens,
        "parameter_norm": engine.space.norm(engine.space.masters()),
        "rank": engine.rank,
    }
    engine.close()
    return result


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    for key in ("save_to", "resume_from"):
        if given.get(key):
            given[key] = Path(given[key])
    outcome = run(**given)
    if outcome["rank"] == 0:
        Path(sys.argv[1]).write_text(json.dumps(outcome))
