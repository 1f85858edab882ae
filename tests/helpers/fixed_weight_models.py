"""Tiny models with persistent buffers or frozen parameters, which no run changes, and whose values no config tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ofmu.models.scratch import train_tokenizer

_SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 192, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
KINDS: dict[str, dict[str, Any]] = {
    "gemma4_text": {
        "head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "deepseek_v3": {
        **_EXPERTS, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
    },
    "glm4_moe": {**_EXPERTS, "n_routed_experts": 4, "head_dim": 8},
    "ernie4_5_moe": {"moe_intermediate_size": 16, "moe_num_experts": 4, "moe_k": 2},
    "pegasus": {
        "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_layers": 1,
        "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Buffers of layers; buffers beside experts, whose weights have other names in files, twice; a frozen parameter beside
such experts; and a frozen parameter alone."""


def fixed_names(model: torch.nn.Module) -> set[str]:
    """Return the names of the state dict that are not trained."""
    named = model.named_parameters(remove_duplicate=False)
    return model.state_dict().keys() - {name for name, one in named if one.requires_grad}


def model_of(kind: str, vocabulary: int) -> Any:
    """Return a model whose fixed weights have odd values, which bf16 would round."""
    settings = {**_SIZES, **KINDS[kind], "vocab_size": vocabulary, "vocab_size_per_layer_input": vocabulary}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    with torch.no_grad():
        for name in fixed_names(model):
            tensor = model.state_dict()[name]
            tensor.add_(0.37 + 0.1 * torch.rand_like(tensor))
    return model


def write_source(kind: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Save a model and its tokenizer as their authors would."""
    tokenizer = train_tokenizer(["Where was Ada born? Ada was born in Geneva."] * 3, 300)
    model_of(kind, len(tokenizer)).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def differing(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> set[str]:
    """Return the names whose values are not the same, or that one of two state dicts lacks."""
    common = found.keys() & expected.keys()
    apart = {name for name in common if not torch.equal(found[name], expected[name])}
    return apart | (found.keys() ^ expected.keys())
