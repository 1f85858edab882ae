"""A tiny model and data to score. As a script, this file runs one rank of a process group."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.evaluation.scoring.model import score_model
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.run_config import UnlearnConfig

NAMES = ["Ann Lee", "Bo", "Cy Okonkwo-Marsh of Lagos", "Di"]


def make_data() -> UnlearnData:
    def row(name: str, paraphrased: bool) -> Row:
        return Row(
            question=f"Who wrote book {len(name)}?",
            answer=f"{name} wrote it.",
            paraphrased_answer=f"It is by {name}." if paraphrased else None,
            perturbed_answers=tuple(f"{other} wrote it." for other in NAMES[: len(name) % 3 + 1]),
        )

    forget = RowSet("forget", tuple(row(name, True) for name in NAMES))
    facts = RowSet("world_facts", tuple(row(name, False) for name in NAMES[:3]))
    text = RowSet("retain", (Row(question="", answer="Ann Lee lives in a town by the sea."),))
    return UnlearnData(forget, text, None, {"forget": forget, "retain": text, "world_facts": facts})


def make_model() -> tuple[Any, Any]:
    """Return a random Llama and its tokenizer. The weights are large, so no argmax is nearly a tie."""
    tokenizer = train_tokenizer(["Question: Who wrote it?\nAnswer: Ann Lee wrote it. " * 4], 280)
    shape = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2)
    model = build_model(shape, tokenizer, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
    return model, tokenizer


def sections(**settings: Any) -> tuple[Any, Any]:
    """Return the evaluation section and the data section."""
    config = make_config(**settings)
    return config.evaluation, config.data


def make_config(**evaluation: Any) -> UnlearnConfig:
    return UnlearnConfig(evaluation={"batch_size": 3, "max_new_tokens": 12, **evaluation})


def main(rank: int, world_size: int, store: str, output: str) -> None:
    """Score twice on one rank. The second time, every forward pass is a collective, as under ZeRO-3."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", timedelta(seconds=60), rank=rank, world_size=world_size)
    model, tokenizer = make_model()
    for mode in ("independent", "synchronized"):
        shard = {"rank": rank, "world_size": world_size, "synchronized": mode == "synchronized"}
        if shard["synchronized"]:
            model.register_forward_pre_hook(lambda *_: dist.all_reduce(torch.ones(1)))
        scores = score_model(
            model, tokenizer, make_data(), make_config().evaluation, make_config().data, name="m", **shard
        )
        dist.barrier()
        scores.save(f"{output}/{mode}{rank}.json")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
