"""Shapes of models, the arithmetic of a pass, and what cards can compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Shape = Mapping[str, Any]
Precision = Literal["fp32", "tf32", "bf16"]


def _llama(hidden: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int, *, tied: bool) -> Shape:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": hidden // heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
    }


LLAMA_1B = _llama(2048, 8192, 16, 32, 8, 128256, tied=True)
"""Llama-3.2-1B"""
LLAMA_3B = _llama(3072, 8192, 28, 24, 8, 128256, tied=True)
"""Llama-3.2-3B"""
LLAMA_8B = _llama(4096, 14336, 32, 32, 8, 128256, tied=False)
"""Llama-3.1-8B"""
SMOL_135M = _llama(576, 1536, 30, 9, 3, 49152, tied=True)
"""SmolLM2-135M"""
MEDIUM = _llama(256, 704, 4, 4, 4, 2048, tied=False)
TINY = _llama(32, 64, 2, 4, 2, 128, tied=True)
SMALL = _llama(64, 128, 2, 4, 2, 256, tied=False)

PEAKS: tuple[tuple[str, Mapping[Precision, float]], ...] = (
    # The first name that is part of a card's name counts. 10¹² FLOP/s without sparsity, from the data sheets.
    ("H100 PCIe", {"fp32": 51.2, "tf32": 378, "bf16": 756}),
    ("H100 NVL", {"fp32": 60.0, "tf32": 417.5, "bf16": 835}),
    ("H100", {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4}),
    ("H200", {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4}),
    ("GH200", {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4}),
    ("B200", {"fp32": 75.0, "tf32": 1125, "bf16": 2250}),
    ("A100", {"fp32": 19.5, "tf32": 156, "bf16": 312}),
    ("A10", {"fp32": 31.2, "tf32": 62.5, "bf16": 125}),
    ("L40S", {"fp32": 91.6, "tf32": 183, "bf16": 362}),
    ("L4", {"fp32": 30.3, "tf32": 60, "bf16": 121}),
    ("RTX 4090", {"fp32": 82.6, "tf32": 82.6, "bf16": 165.2}),
    ("RTX 3090", {"fp32": 35.6, "tf32": 35.6, "bf16": 71}),
    ("V100", {"fp32": 15.7}),
    ("T4", {"fp32": 8.1}),
)


def peak_flops(card: str | None, precision: Precision) -> float | None:
    """Return what a card computes at most in FLOP/s. None: the table does not have the card, or not in that type."""
    for name, peaks in PEAKS:
        if card is not None and name in card:
            return peaks[precision] * 1e12 if precision in peaks else None
    return None


def build_llama(shape: Shape, device: str, *, attention: str = "sdpa", seed: int = 0) -> Any:
    """Return an untrained fp32 Llama whose weights are drawn on ``device``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    arguments = {key: value for key, value in shape.items() if key != "model_type"}
    torch.manual_seed(seed)
    with torch.device(device):
        return LlamaForCausalLM(LlamaConfig(**arguments, attn_implementation=attention))


def multiplied_weights(shape: Shape) -> int:
    """Return the number of weights that every token is multiplied by: all but input embeddings that are only read."""
    from ofmu.models.sizes import sizes_of

    sizes = sizes_of(shape)
    return sizes.parameters - (sizes.embeddings if sizes.head else 0)


def gradient_flops(shape: Shape, tokens: float, length: int) -> float:
    """Return the FLOPs of one gradient: 6·N·tokens, and 12·layers·width·length·tokens of attention.

    That is the convention of PaLM (Chowdhery et al., arXiv 2204.02311, appendix B): the mask halves no work, and what
    is computed again does not count.

    Args:
        shape: the model.
        tokens: tokens of the minibatch.
        length: tokens of each row.
    """
    width = shape["num_attention_heads"] * shape["head_dim"]
    attention = 12 * shape["num_hidden_layers"] * width * length
    return float((6 * multiplied_weights(shape) + attention) * tokens)


def planned_round(
    shape: Shape,
    method: Mapping[str, Any],
    engine: Mapping[str, Any],
    *,
    rows: int,
    length: int,
    lora: bool,
    cuda: bool,
) -> tuple[float, float]:
    """Return what ``ofmu plan`` computes for a run of random rows: bytes of a round, and of the whole run at most.

    Evaluation and saving are left out, since the benchmark does not run them.
    """
    from ofmu.models.meta import exact_sizes
    from ofmu.plan.memory import memory_plan
    from ofmu.plan.workload import Workload
    from ofmu.run_config import UnlearnConfig

    config = UnlearnConfig.model_validate(
        {
            "method": {"batch_size": rows, **method},
            "engine": {**engine, "device": "auto"},
            "model": {"adapter": {"kind": "lora" if lora else "none"}},
        }
    )
    work = Workload(
        forget_rows=rows, retain_rows=rows, longest=length, forget_tokens=length, retain_tokens=length,
        longest_prompt=length // 2, longest_answer=length // 2, evaluation_rows=1, evaluation_tokens=length,
        measured=True,
    )  # fmt: skip
    plan = memory_plan(config, shape, exact_sizes(shape), work, ranks=1, on_gpu=cuda)
    sizes = {phase.name: phase.device if cuda else phase.total for phase in plan.phases}
    return sizes["round"], max(sizes["round"], sizes["load"])
